"""Arrays inside an ``.npz``: headers checked, read by rows, never unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from pipeline.sources.streams import zip_damage


class NpyArray:
    """One member of an ``.npz``: ``shape`` and ``dtype`` now, the values in pieces.

    Raises
    ------
    ValueError — if it is no array, is encrypted or damaged, would need pickle, is in
        Fortran order, or is not as long as its header says.
    """

    def __init__(
        self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path
    ) -> None:
        self._archive = archive
        self._info = info
        self.where = f"{source}: {info.filename}"
        with self._opened() as file:
            self.shape, fortran, self.dtype = self._header(file)
            n_bytes = file.tell() + math.prod(self.shape) * self.dtype.itemsize
        if self.dtype.hasobject:
            raise ValueError(
                "`source` must hold arrays of numbers or text; got objects, which need "
                f"pickle, at {self.where}. Save them with a number dtype: "
                "array.astype(...)."
            )
        if fortran and len(self.shape) > 1:
            raise ValueError(
                f"`source` must hold arrays in C order; got Fortran order at "
                f"{self.where}. Save numpy.ascontiguousarray(array)."
            )
        if not self.dtype.itemsize or min(self.shape, default=0) < 0:
            raise damaged(self.where, f"{self.dtype} of shape {self.shape}")
        if n_bytes != info.file_size:
            raise ValueError(
                f"`source` must hold whole arrays; got {info.file_size} bytes, not "
                f"{n_bytes}, at {self.where}. Write the file again."
            )

    def pieces(self, rows: int) -> Iterator[np.ndarray]:
        """Yield the array's rows in order, at most ``rows`` at a time."""
        n_rows = self.shape[0] if self.shape else 1
        with self._opened() as file:
            self._header(file)
            for start in range(0, n_rows, rows):
                shape = (min(rows, n_rows - start), *self.shape[1:])
                n_bytes = math.prod(shape) * self.dtype.itemsize
                data = file.read(n_bytes)
                if len(data) < n_bytes:
                    raise damaged(self.where, "cut short")
                yield np.frombuffer(data, self.dtype).reshape(shape)

    def whole(self) -> np.ndarray:
        """Return all values at once, flattened."""
        n_rows = self.shape[0] if self.shape else 1
        pieces = [piece.ravel() for piece in self.pieces(max(n_rows, 1))]
        return np.concatenate([np.empty(0, self.dtype), *pieces])

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        try:
            if np.lib.format.read_magic(file) == (1, 0):
                return np.lib.format.read_array_header_1_0(file)
            return np.lib.format.read_array_header_2_0(file)
        except (ValueError, SyntaxError, TokenError, MemoryError) as err:
            raise damaged(self.where, str(err)) from err

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with (
            zip_damage(lambda what: damaged(self.where, what)),
            self._archive.open(self._info) as file,
        ):
            yield file


def damaged(where: str, what: str) -> ValueError:
    """Return the error for a file that is no whole ``.npz``."""
    return ValueError(
        f"`source` must be a whole .npz of numpy arrays; got {where} ({what}). "
        "Write it with numpy.savez."
    )
