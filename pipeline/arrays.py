"""Zarr arrays that cannot be wrong in silence: checksummed chunks, hashed content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

CHUNK_BYTES = 4 * 2**20  # at most, uncompressed
CHUNK_ROWS = 1000  # at most

OnRows = Callable[[int], None]  # how many rows were read


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> zarr.Array[Any]:
    """Create an array in chunks of rows, every chunk written and with a checksum.

    Zarr reads a missing chunk as zeros and does not write chunks of zeros: here all are
    written, so that a chunk list can tell what is missing. Zarr's own checksum is off
    by default: here a flipped bit is an error.

    Parameters
    ----------
    group : zarr.Group — of Zarr format 3.
    name : str — the array's name.
    shape : tuple of int — rows first.
    dtype : np.dtype — stored little-endian.
    dims : tuple of str — names of the axes, as xarray reads them.
    attributes : mapping — JSON values, such as ``units`` and ``long_name``.

    Returns
    -------
    zarr.Array — writable, by :func:`write_rows`.
    """
    return group.create_array(
        name,
        shape=shape,
        chunks=(chunk_rows(shape, dtype), *shape[1:]),
        dtype=dtype,
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},  # one flat folder
        fill_value=0,
        dimension_names=dims,
        attributes=dict(attributes),
        config={"write_empty_chunks": True},
    )


def chunk_rows(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return how many rows a chunk of such an array has."""
    row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
    return max(1, min(CHUNK_BYTES // row_bytes, CHUNK_ROWS, max(shape[0], 1)))


def piece_rows(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return how many rows to read or write at once: whole chunks, some megabytes."""
    rows = chunk_rows(shape, dtype)
    row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
    return rows * max(1, CHUNK_BYTES // (rows * row_bytes))


def write_rows(array: zarr.Array[Any], start: int, rows: np.ndarray) -> None:
    """Write ``rows`` from row ``start`` (a chunk's first) on, one chunk at a time.

    Zarr writes the chunks of one assignment side by side, and should one fail it leaves
    the others running: they would put files back into a folder that is being removed.
    """
    if not rows.ndim:
        array[...] = rows
        return
    step = array.chunks[0]
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        array[start + first : start + first + len(some)] = some


class ContentHash:
    """The sha256 of an array's type, row shape and values, taken a piece at a time."""

    def __init__(self, dtype: np.dtype, row_shape: tuple[int, ...]) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._hash = hashlib.sha256(f"{self._dtype.str} {row_shape}".encode())

    def update(self, rows: np.ndarray) -> None:
        """Add rows in order."""
        values = np.ascontiguousarray(rows, dtype=self._dtype)
        self._hash.update(values.reshape(-1).view(np.uint8).data)

    @property
    def sha256(self) -> str:
        """The hash of the rows so far, in hexadecimal."""
        return self._hash.hexdigest()


def read_rows(array: zarr.Array[Any]) -> Iterator[np.ndarray]:
    """Yield the array's rows in order, whole chunks at a time."""
    rows = piece_rows(array.shape, np.dtype(array.dtype))
    for start in range(0, array.shape[0], rows):
        yield np.asarray(array[start : start + rows])


def hash_array(array: zarr.Array[Any], on_rows: OnRows | None = None) -> str:
    """Return the content hash of a stored array, reading every chunk once."""
    content = ContentHash(np.dtype(array.dtype), array.shape[1:])
    for rows in read_rows(array):
        content.update(rows)
        if on_rows is not None:
            on_rows(len(rows))
    return content.sha256


def chunk_sizes(store: Path) -> dict[str, int]:
    """Return every chunk file under ``store`` with its size in bytes, in order."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {
        path.relative_to(store).as_posix(): path.stat().st_size
        for path in files
        if path.name != "zarr.json"
    }


def wrong_chunks(store: Path, sizes: Mapping[str, int], prefix: str = "") -> list[str]:
    """Return which listed chunk files (of one array) are missing or of another size."""
    return [
        name
        for name, size in sizes.items()
        if name.startswith(prefix) and _size(store / name) != size
    ]


def _size(path: Path) -> int | None:
    """Return the bytes of a file; None where there is none, or cannot be one."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
