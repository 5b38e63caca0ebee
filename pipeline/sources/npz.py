"""NumPy archives: ``x_train, y_train, x_test, y_test`` or ``x, y``, read in pieces."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.sources.npy import DAMAGED, NpyArray, damaged
from pipeline.sources.ordering import held_out
from pipeline.sources.raw import (
    MAX_CLASSES,
    MAX_IMAGE_BYTES,
    MAX_SAMPLES,
    Batch,
    RawDataset,
    RawSplit,
    checked,
)
from pipeline.sources.streams import refuse_bomb, require_file

CHANNELS = {1, 3, 4}
NAMES = ("x_train", "y_train", "x_test", "y_test")
ONE_SPLIT = ("x", "y", "x", "y")


@contextmanager
def open_npz(source: Path) -> Iterator[RawDataset]:
    """Read images and labels from an ``.npz``, never unpickling anything.

    Images are (n, H, W), (n, H, W, C) or (n, C, H, W) with C in {1, 3, 4}; whole
    numbers in 0…255 are stored as uint8, floating point as float32 in their own scale.
    Labels are integers 0…n_classes − 1, of shape (n,) or (n, 1). An optional array
    ``class_names`` of text names the classes. With ``x, y`` only, one sample in six of
    every class is for testing.

    Raises
    ------
    FileNotFoundError — if there is no such file.
    ValueError — if it is damaged, would need pickle, or its arrays break these rules.
    """
    require_file(source)
    try:
        archive = zipfile.ZipFile(source)
    except DAMAGED as err:
        raise damaged(str(source), str(err)) from err
    with archive:
        members = archive.infolist()
        refuse_bomb(sum(info.file_size for info in members), str(source))
        arrays = {
            info.filename.removesuffix(".npy"): NpyArray(archive, info, source)
            for info in members
        }
        names = NAMES if set(NAMES) <= set(arrays) else ONE_SPLIT
        if not set(names) <= set(arrays):
            raise ValueError(
                f"`source` must hold arrays {', '.join(NAMES)}, or x and y; got "
                f"{sorted(arrays)} at {source}. Name them so when saving."
            )
        chosen = [arrays[name] for name in names]
        yield _dataset(chosen, arrays.get("class_names"), source)


def _dataset(
    arrays: list[NpyArray], class_names: NpyArray | None, source: Path
) -> RawDataset:
    x_train, x_test = arrays[0], arrays[2]
    y_train, y_test = _labels(arrays[1]), _labels(arrays[3])
    if class_names is None:
        n_classes = int(max(y_train.max(), y_test.max())) + 1
        classes = tuple(str(label) for label in range(n_classes))
    else:
        classes = tuple(str(name) for name in class_names.whole())
    shape = _image_shape(x_train)
    if (_image_shape(x_test), x_test.dtype.kind == "f") != (
        shape,
        x_train.dtype.kind == "f",
    ):
        raise ValueError(
            f"`images` must all be {x_train.dtype} of shape {shape}; got "
            f"{x_test.dtype} of shape {_image_shape(x_test)} at {x_test.where}. "
            "Make them alike."
        )
    if x_train is x_test:
        for_test = held_out(y_train)
        keep_train, keep_test = ~for_test, for_test
    else:
        keep_train, keep_test = np.full(len(y_train), True), np.full(len(y_test), True)
    return RawDataset(
        train=_split(x_train, y_train, keep_train, len(classes)),
        test=_split(x_test, y_test, keep_test, len(classes)),
        image_shape=shape,
        dtype=np.dtype(np.float32 if x_train.dtype.kind == "f" else np.uint8),
        class_names=classes,
        source=f"npz: {source.name}"
        + (", one in six of each class for testing" if x_train is x_test else ""),
        verified=False,
    )


def _split(
    images: NpyArray, labels: np.ndarray, keep: np.ndarray, n_classes: int
) -> RawSplit:
    if images.shape[0] != len(labels):
        raise ValueError(
            f"`labels` must be as many as the images ({images.shape[0]}); got "
            f"{len(labels)} at {images.where}. Save both from one data set."
        )

    def read(rows: int, limit: int) -> Iterator[Batch]:
        start, left = 0, limit
        for piece in images.pieces(rows):
            taken = np.flatnonzero(keep[start : start + len(piece)])[:left]
            yield _typed(piece[taken], images), labels[start + taken]
            start, left = start + len(piece), left - len(taken)
            if not left:
                return

    def batches(rows: int, limit: int) -> Iterator[Batch]:
        return checked(read(rows, limit), _image_shape(images), n_classes, images.where)

    return RawSplit(int(keep.sum()), batches)


def _image_shape(array: NpyArray) -> tuple[int, int, int]:
    """Return (C, H, W) of images with their channels first, last or not at all."""
    shape = array.shape
    if len(shape) == 3:
        image = (1, *shape[1:])
    elif len(shape) == 4 and shape[3] in CHANNELS:
        image = (shape[3], shape[1], shape[2])
    elif len(shape) == 4 and shape[1] in CHANNELS:
        image = shape[1:]
    else:
        image = (0, 0, 0)
    n_bytes = math.prod(image) * array.dtype.itemsize
    if array.dtype.kind not in "uif" or not 0 < n_bytes <= MAX_IMAGE_BYTES:
        raise ValueError(
            "`images` must be numbers of shape (n, H, W), (n, H, W, C) or "
            f"(n, C, H, W), C in {sorted(CHANNELS)}, of 1…{MAX_IMAGE_BYTES} bytes "
            f"each; got {array.dtype} of shape {shape} at {array.where}. Reshape them "
            "before saving."
        )
    return (image[0], image[1], image[2])


def _labels(array: NpyArray) -> np.ndarray:
    flat = array.shape[1:] in {(), (1,)}
    if array.dtype.kind not in "ui" or not array.shape or not flat:
        raise ValueError(
            f"`labels` must be integers of shape (n,); got {array.dtype} of shape "
            f"{array.shape} at {array.where}. Save labels.astype('int64')."
        )
    if array.shape[0] > MAX_SAMPLES:
        raise ValueError(
            f"`labels` must be at most {MAX_SAMPLES}; got {array.shape[0]} at "
            f"{array.where}. Ingest a part of them."
        )
    values = array.whole()
    if not len(values) or values.min() < 0 or values.max() >= MAX_CLASSES:
        got = f"{values.min()}…{values.max()}" if len(values) else "none"
        raise ValueError(
            f"`labels` must be one or more in 0…{MAX_CLASSES - 1}; got {got} at "
            f"{array.where}. Number the classes from 0."
        )
    return values.astype(np.int64)


def _typed(piece: np.ndarray, array: NpyArray) -> np.ndarray:
    """Return (m, C, H, W) uint8 or float32, refusing values that would not survive."""
    if len(array.shape) == 3:
        piece = piece[:, None]
    elif array.shape[3] in CHANNELS:
        piece = piece.transpose(0, 3, 1, 2)
    if piece.dtype.kind == "f":
        if not np.isfinite(piece).all():
            raise ValueError(
                f"`images` must be finite; got NaN or infinity at {array.where}. "
                "Clean them before saving."
            )
        return piece.astype(np.float32)
    if piece.size and not (piece.min() >= 0 and piece.max() <= 255):
        raise ValueError(
            f"`images` of whole numbers must be in 0…255; got "
            f"{piece.min()}…{piece.max()} at {array.where}. Save them as uint8 "
            "or as float32."
        )
    return piece.astype(np.uint8)
