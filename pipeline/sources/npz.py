"""NumPy archives: ``x_train, y_train, x_test, y_test`` or ``x, y``, read in pieces."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.sources.classes import MAX_NAME, check_class_names
from pipeline.sources.npy import NpyArray, damaged
from pipeline.sources.npz_names import CLASS_NAMES, Arrays
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
from pipeline.sources.streams import require_file, zip_damage

CHANNELS = {1, 3, 4}
SPLITS = ("train", "val", "test")
LAYOUTS = {"NCHW": True, "NHWC": False}  # whether channels come first


@contextmanager
def open_npz(source: Path) -> Iterator[RawDataset]:
    """Read images and labels from an ``.npz``, never unpickling anything.

    Images are (n, H, W), (n, H, W, C) or (n, C, H, W) with C in {1, 3, 4}; whole
    numbers in 0…255 are stored as uint8, floating point as float32 in their own scale.
    Where both readings of a shape make sense, the text ``layout`` decides, "NCHW" or
    "NHWC". Labels are integers 0…n_classes − 1, of shape (n,) or (n, 1). An optional
    array ``class_names`` of text names the classes. Without ``x_test`` and ``y_test``,
    one training sample in six of every class is for testing. Arrays that are not asked
    for are not read.

    Raises
    ------
    FileNotFoundError — if there is no such file.
    ValueError — if it is damaged, would need pickle, or its arrays break these rules.
    """
    if source.suffix.lower() in {".zip", ".tar", ".tgz"} or source.is_dir():
        raise ValueError(
            f"`source` must be an .npz; got {source}. Ingest class folders of images "
            f"as image-folder: ndcao ingest image-folder --from {source}."
        )
    require_file(source)
    with zip_damage(lambda what: damaged(str(source), what)):
        archive = zipfile.ZipFile(source)
    with archive:
        yield _dataset(Arrays(archive, source), source)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Images and labels of a split: those rows of the arrays that it keeps."""

    images: NpyArray
    labels: np.ndarray
    keep: np.ndarray  # (n,) bool
    channels_first: bool


def _dataset(arrays: Arrays, source: Path) -> RawDataset:
    pairs = {split: arrays.pair(split) for split in SPLITS}
    layout = _layout(arrays.find(["layout"]))
    parts: dict[str, _Part] = {}
    for split, pair in pairs.items():
        if pair is not None:
            first = _channels_first(pair[0], layout)
            parts[split] = _part(*pair, channels_first=first)
    train = parts["train"]
    shape = _image_shape(train.images, channels_first=train.channels_first)
    for part in parts.values():
        _refuse_other_kind(part, train, shape)
    names = arrays.find(CLASS_NAMES)
    classes = _classes(names, [part.labels for part in parts.values()])
    check_class_names(classes, str(source))
    held = ""
    if "test" not in parts:
        mask, held = held_out(train.labels), ", one in six of each class for testing"
        parts["train"] = dataclasses.replace(train, keep=~mask)
        parts["test"] = dataclasses.replace(train, keep=mask)
    splits = {split: _split(part, shape, len(classes)) for split, part in parts.items()}
    return RawDataset(
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        image_shape=shape,
        dtype=np.dtype(np.float32 if train.images.dtype.kind == "f" else np.uint8),
        class_names=classes,
        source=f"npz: {source.name}{held}",
        verified=False,
    )


def _part(images: NpyArray, labels: NpyArray, *, channels_first: bool) -> _Part:
    values = _labels(labels)
    if not images.shape or images.shape[0] != len(values):
        n = images.shape[0] if images.shape else 0
        raise ValueError(
            f"`labels` must be as many as the images ({n}); got {len(values)} at "
            f"{images.where}. Save both from one data set."
        )
    return _Part(images, values, np.full(len(values), True), channels_first)


def _refuse_other_kind(part: _Part, train: _Part, shape: tuple[int, int, int]) -> None:
    got = _image_shape(part.images, channels_first=part.channels_first)
    is_float, want_float = (p.images.dtype.kind == "f" for p in (part, train))
    if (got, is_float) != (shape, want_float):
        raise ValueError(
            f"`images` must all be {train.images.dtype} of shape {shape}; got "
            f"{part.images.dtype} of shape {got} at {part.images.where}. Make them "
            "alike."
        )


def _classes(names: NpyArray | None, labels: list[np.ndarray]) -> tuple[str, ...]:
    """Return the names of the classes: those given, or the numbers 0…n − 1."""
    if names is not None:
        return _text(names)
    present = np.unique(np.concatenate(labels))
    absent = np.setdiff1d(np.arange(present[-1] + 1), present)
    if len(absent):
        raise ValueError(
            f"`labels` must be 0…n − 1 with each number there; got {len(present)} "
            f"numbers up to {present[-1]}, and none that is {absent[0]}. Save "
            "numpy.unique(y, return_inverse=True)[1], or add an array class_names with "
            "a name for every number."
        )
    return tuple(str(number) for number in present)


def _split(
    part: _Part,
    shape: tuple[int, int, int],
    n_classes: int,
) -> RawSplit:
    images, labels, keep = part.images, part.labels, part.keep

    def read(rows: int, limit: int) -> Iterator[Batch]:
        start, left = 0, limit
        for piece in images.pieces(rows):
            taken = np.flatnonzero(keep[start : start + len(piece)])[:left]
            yield _typed(piece[taken], part), labels[start + taken]
            start, left = start + len(piece), left - len(taken)
            if not left:
                return

    def batches(rows: int, limit: int) -> Iterator[Batch]:
        return checked(read(rows, limit), shape, n_classes, images.where)

    return RawSplit(int(keep.sum()), batches)


def _layout(array: NpyArray | None) -> bool | None:
    """Return whether channels come first, where the file says so."""
    if array is None:
        return None
    text = _text(array)
    if len(text) != 1 or text[0].upper() not in LAYOUTS:
        raise ValueError(
            f"`layout` must be NCHW or NHWC; got {', '.join(text)[:100]} at "
            f"{array.where}. Say where the channels of the images are."
        )
    return LAYOUTS[text[0].upper()]


def _channels_first(images: NpyArray, layout: bool | None) -> bool:
    """Return where the channels of images of four axes are."""
    if len(images.shape) != 4:
        return True
    first, last = (images.shape[axis] in CHANNELS for axis in (1, 3))
    if layout is None and first and last:
        raise ValueError(
            "`images` must have their channels in one place only; got shape "
            f"{images.shape}, which is channels first or last, at {images.where}. Add "
            'layout="NCHW" (first) or layout="NHWC" (last) when saving.'
        )
    return first if layout is None else layout


def _image_shape(array: NpyArray, *, channels_first: bool) -> tuple[int, int, int]:
    """Return (C, H, W) of images with their channels first, last or not at all."""
    shape = array.shape
    image: tuple[int, ...] = (0, 0, 0)
    if len(shape) == 3:
        image = (1, *shape[1:])
    elif len(shape) == 4:
        image = shape[1:] if channels_first else (shape[3], shape[1], shape[2])
    n_bytes = math.prod(image) * array.dtype.itemsize
    fits = image[0] in CHANNELS and 0 < n_bytes <= MAX_IMAGE_BYTES
    if array.dtype.kind not in "uif" or not fits:
        raise ValueError(
            "`images` must be numbers of shape (n, H, W), (n, H, W, C) or "
            f"(n, C, H, W), C in {sorted(CHANNELS)}, of 1…{MAX_IMAGE_BYTES} bytes "
            f"each; got {array.dtype} of shape {shape} at {array.where}. Reshape them "
            "before saving."
        )
    return (image[0], image[1], image[2])


def _text(array: NpyArray) -> tuple[str, ...]:
    """Return an array of text, of UTF-8 bytes or of whole numbers as strings."""
    n = math.prod(array.shape)
    if (
        array.dtype.kind not in "USiu"
        or not 0 < n <= MAX_CLASSES
        or array.dtype.itemsize > 4 * MAX_NAME
    ):
        raise ValueError(
            f"`class_names` must be 1…{MAX_CLASSES} texts of at most {MAX_NAME} "
            f"letters; got {array.dtype} of shape {array.shape} at {array.where}. "
            "Save numpy.array(names, dtype=str)."
        )
    values = array.whole()
    try:
        if array.dtype.kind == "S":
            return tuple(value.decode("utf-8") for value in values)
        return tuple(str(value) for value in values)
    except UnicodeDecodeError as err:
        raise ValueError(
            f"`class_names` must be text; got bytes that are not UTF-8 at "
            f"{array.where}. Save numpy.array(names, dtype=str)."
        ) from err


def _labels(array: NpyArray) -> np.ndarray:
    flat = array.shape[1:] in {(), (1,)}
    if array.dtype.kind not in "ui" or not array.shape or not flat:
        save = "labels.astype('int64'), of one-hot labels labels.argmax(1)"
        if array.dtype.kind in "US":
            save = (
                "y of class_names, y = numpy.unique(labels, return_inverse=True), "
                "and class_names"
            )
        raise ValueError(
            f"`labels` must be integers of shape (n,); got {array.dtype} of shape "
            f"{array.shape} at {array.where}. Save {save}."
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


def _typed(piece: np.ndarray, part: _Part) -> np.ndarray:
    """Return (m, C, H, W) uint8 or float32, refusing values that would not survive."""
    if piece.ndim == 3:
        piece = piece[:, None]
    elif not part.channels_first:
        piece = piece.transpose(0, 3, 1, 2)
    where = part.images.where
    if piece.dtype.kind == "f":
        with np.errstate(over="ignore"):
            piece = piece.astype(np.float32)
        if not np.isfinite(piece).all():
            raise ValueError(
                "`images` must be finite float32; got NaN, infinity or a number past "
                f"3.4e38 at {where}. Clean or scale them before saving."
            )
        return piece
    if piece.size and not (piece.min() >= 0 and piece.max() <= 255):
        raise ValueError(
            f"`images` of whole numbers must be in 0…255; got "
            f"{piece.min()}…{piece.max()} at {where}. Save them as uint8 "
            "or as float32."
        )
    return piece.astype(np.uint8)
