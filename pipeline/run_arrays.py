"""What a comparison reads of run stores: attributes and lengths now, values later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.run_store import RunChanged, StoredRun, read_variables, stored_run
from pipeline.schema import VARIABLES
from pipeline.sealed import UNREADABLE, is_sealed

__all__ = [
    "COMBINED",
    "RAGGED",
    "RunArrays",
    "lazy_rows",
    "lazy_variable",
    "mean_staleness",
    "padded",
    "read_run",
]

#: Dimensions whose length differs between runs.
RAGGED = ("eval", "update", "score")
#: Variables that combining needs: those of every run over one ragged dimension.
COMBINED = tuple(
    v.name
    for v in VARIABLES.values()
    if v.required and len(v.dims) == 1 and v.dims[0] in RAGGED
)
_BLOCK_BYTES = 2**16  # of rows that are read together
_MOST_RUNS = 32


@dataclass(frozen=True, slots=True)
class RunArrays:
    """What combining needs of one store before any value is read."""

    stored: StoredRun
    sizes: Mapping[str, int]  # of the ragged dims
    staleness: float  # versions

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The run's attributes."""
        return self.stored.attrs


def mean_staleness(seen_version: np.ndarray, scored_version: np.ndarray) -> float:
    """Return the mean number of versions that passed between reading and scoring.

    The staleness of an update is ``scored_version - seen_version - 1``: 0 where the
    very next version scored its point. Updates that saw no loss or were never
    scored (-1) do not count; NaN where none does.

    Parameters
    ----------
    seen_version, scored_version : (U,) int — one entry an update.
    """
    seen, first = np.asarray(seen_version), np.asarray(scored_version)
    known = (seen >= 0) & (first >= 0)
    return float((first - seen - 1)[known].mean()) if known.any() else float("nan")


def read_run(path: Path) -> RunArrays | str:
    """Return what is needed of a run, or the reason why it cannot be had.

    Evaluations and scores are not read; that every file is there, and is of its size,
    is checked.
    """
    if not path.exists():
        return "does not exist"
    try:
        run = stored_run(path, COMBINED)
        for name in COMBINED:
            if f"{name}/zarr.json" not in run.store.files:
                return f"it lacks the variable {name!r} of a run"
        seen, scored = run.read(("seen_version", "scored_version"))
        sizes = {"update": len(seen)}
        for dim, name in (("eval", "step"), ("score", "score_version")):
            sizes[dim] = run.array(name).shape[0]
    except RunChanged as err:
        return err.why
    return RunArrays(run, sizes, mean_staleness(seen, scored))


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """Return ``values`` lengthened with NaN, or with -1 where they are integers."""
    fill: float = np.nan if values.dtype.kind == "f" else -1
    out = np.full(length, fill, dtype=values.dtype)
    out[: len(values)] = values
    return out


def lazy_rows(runs: Sequence[RunArrays], name: str, length: int) -> Any:
    """Return a (run, length) Dask array that reads runs' rows when they are needed.

    Short rows are read several runs at a time: a task a row would cost about as much
    as its reading.
    """
    import dask.array as da

    dtype = np.dtype(VARIABLES[name].dtype)
    at_once = min(_MOST_RUNS, max(1, _BLOCK_BYTES // max(1, length * dtype.itemsize)))
    places = da.from_array(np.arange(len(runs)), chunks=at_once, name=False)
    return places.map_blocks(
        _Rows([run.stored for run in runs], name, length, dtype),
        dtype=dtype,
        new_axis=1,
        chunks=(places.chunks[0], (length,)),
        meta=np.empty((0, 0), dtype=dtype),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Reads a variable of the runs at some places, padded to one length."""

    runs: Sequence[StoredRun]
    name: str
    length: int
    dtype: np.dtype

    def __call__(self, places: np.ndarray) -> np.ndarray:
        rows = read_variables([(self.runs[place], self.name) for place in places])
        return np.stack(
            [padded(row.astype(self.dtype, copy=False), self.length) for row in rows]
        )

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Name the graph by what is read: Dask would pickle all lists of files."""
        told = [f"{r.path} {r.attrs['content_sha256']}" for r in self.runs]
        return self.name, self.length, "\n".join(told)


def lazy_variable(run: StoredRun, name: str) -> Any:
    """Return one run's variable as a Dask array, in the chunks of its store.

    A store without a seal can be checked as a whole only: there is one chunk.
    """
    import dask.array as da
    from dask.delayed import delayed

    array = run.array(name)
    if is_sealed(run.attrs):
        named = _Named(run, array)
        return da.from_array(named, chunks=array.chunks, inline_array=True)
    values = delayed(lambda: run.read([name])[0])()
    return da.from_delayed(values, array.shape, array.dtype)


class _Named:
    """An array whose errors name the run that they are in."""

    def __init__(self, run: StoredRun, array: Any) -> None:
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self._run, self._array = run, array

    def __getitem__(self, part: Any) -> np.ndarray:
        try:
            return np.asarray(self._array[part])
        except UNREADABLE as err:
            raise RunChanged(self._run.path, err) from err
