"""IDX files (LeCun): the four files of MNIST and Fashion-MNIST, gzip or not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.sources.known import KNOWN, KnownFile, checksum_error
from pipeline.sources.raw import (
    MAX_IMAGE_BYTES,
    MAX_SAMPLES,
    Batch,
    RawDataset,
    RawSplit,
    checked,
)
from pipeline.sources.streams import CheckedStream, open_stream

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801


@contextmanager
def open_idx(name: str, source: Path, unverified: bool) -> Iterator[RawDataset]:
    """Read ``mnist`` or ``fashion-mnist`` from a folder with its four IDX files.

    Parameters
    ----------
    name : str — a key of ``KNOWN``.
    source : Path — the folder, or torchvision's around it (``MNIST/raw``); files may be
        gzip or not, whatever their wrapping.
    unverified : bool — take any four IDX files of that layout, without their checksums.

    Raises
    ------
    FileNotFoundError — if the folder or one of the files is missing.
    ValueError — if a file is truncated, of another kind, or not the published one.
    """
    files = KNOWN[name].files
    paths = [_find(_folder(name, source), file) for file in files]
    hashes = [None if unverified else file for file in files]
    n_classes = len(KNOWN[name].class_names)
    train = _split(name, paths[0], paths[1], hashes[0], hashes[1], n_classes)
    test = _split(name, paths[2], paths[3], hashes[2], hashes[3], n_classes)
    shape = _shape(paths[0])
    if _shape(paths[2]) != shape:
        raise ValueError(
            f"`images` must all have shape {shape}; got {_shape(paths[2])} at "
            f"{paths[2]}. Use train and test files of one data set."
        )
    yield RawDataset(
        train=train,
        test=test,
        image_shape=shape,
        dtype=np.dtype(np.uint8),
        class_names=KNOWN[name].class_names,
        source=f"{name}: IDX files, {'unverified' if unverified else 'as published'}",
        verified=not unverified,
    )


def _split(
    name: str,
    images: Path,
    labels: Path,
    images_known: KnownFile | None,
    labels_known: KnownFile | None,
    n_classes: int,
) -> RawSplit:
    shape = _shape(images)
    with open_stream(images) as stream:
        n_samples, *_ = _header(stream, IMAGES_MAGIC, 3, images)
    with open_stream(labels) as stream:
        (n_labels,) = _header(stream, LABELS_MAGIC, 1, labels)
        if n_labels != n_samples:
            raise ValueError(
                f"`labels` must be as many as the images ({n_samples} at {images}); "
                f"got {n_labels} at {labels}. Use the two files of one split."
            )
        values = np.frombuffer(stream.read_exactly(n_labels), np.uint8).astype(np.int64)
        _end(stream, name, labels, labels_known)

    def read(rows: int, limit: int) -> Iterator[Batch]:
        with open_stream(images) as stream:
            _header(stream, IMAGES_MAGIC, 3, images)
            stop = min(limit, n_samples)
            for start in range(0, stop, rows):
                end = min(start + rows, stop)
                data = stream.read_exactly((end - start) * shape[1] * shape[2])
                piece = np.frombuffer(data, np.uint8).reshape(-1, *shape)
                yield piece, values[start:end]
            rest = (n_samples - stop) * shape[1] * shape[2]
            while rest:
                rest -= len(stream.read_exactly(min(rest, 2**20)))
            _end(stream, name, images, images_known)

    def batches(rows: int, limit: int) -> Iterator[Batch]:
        return checked(read(rows, limit), shape, n_classes, str(labels))

    return RawSplit(n_samples, batches)


def _shape(path: Path) -> tuple[int, int, int]:
    with open_stream(path) as stream:
        n_samples, height, width = _header(stream, IMAGES_MAGIC, 3, path)
    fits = 0 < n_samples <= MAX_SAMPLES and 0 < height * width <= MAX_IMAGE_BYTES
    if not fits:
        raise ValueError(
            f"`images` must be 1…{MAX_SAMPLES} of 1…{MAX_IMAGE_BYTES} pixels; got "
            f"{n_samples} of {height} × {width} at {path}. Check the file."
        )
    return 1, height, width


def _header(
    stream: CheckedStream, magic: int, n_axes: int, path: Path
) -> tuple[int, ...]:
    head = stream.read_exactly(4)
    got = int.from_bytes(head, "big")
    if got != magic:
        kind = "images" if magic == IMAGES_MAGIC else "labels"
        raise ValueError(
            f"`source` must be an IDX file of {kind} (magic number 0x{magic:08x}); got "
            f"0x{got:08x} at {path}. Check that the file is what its name says."
        )
    return struct.unpack(f">{n_axes}I", stream.read_exactly(4 * n_axes))


def _end(stream: CheckedStream, name: str, path: Path, known: KnownFile | None) -> None:
    """Raise unless the file ends here and, if known, has the published content."""
    if extra := stream.drain():
        raise ValueError(
            f"`source` must hold what its header says; got {extra} bytes more at "
            f"{path}. Fetch it again."
        )
    if known is not None and stream.sha256 != known.sha256:
        raise checksum_error(
            name, f"sha256 {known.sha256}", f"sha256 {stream.sha256}", str(path)
        )


def _folder(name: str, source: Path) -> Path:
    """Return the folder with the files: ``source``, or where torchvision puts them."""
    for inside in (f"{TORCHVISION[name]}/raw", "raw"):
        if (source / inside).is_dir():
            return source / inside
    return source


def _find(folder: Path, file: KnownFile) -> Path:
    if not folder.is_dir():
        advice = (
            "Ingest it as npz: ndcao ingest npz --from …, with --store."
            if folder.suffix.lower() == ".npz"
            else "Check the path after --from."
        )
        raise FileNotFoundError(
            f"`source` must be a folder with the four IDX files; got {folder}. {advice}"
        )
    dotted = file.name.replace("-idx", ".idx")
    for name in (file.name, f"{file.name}.gz", dotted, f"{dotted}.gz"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"`source` must hold {file.name} or {file.name}.gz; got neither at {folder}. "
        "Put the four IDX files into one folder."
    )
