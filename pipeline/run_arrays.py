"""What a comparison reads of run stores: attributes and lengths now, values later."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays import wrong_chunks
from pipeline.run_store import BROKEN
from pipeline.schema import VARIABLES

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
_LISTS = ("chunks", "variables")
_BLOCK_BYTES = 2**16  # of rows that are read together
_MOST_RUNS = 32


@dataclass(frozen=True, slots=True)
class RunArrays:
    """What combining needs of one store before any value is read."""

    path: Path
    attrs: Mapping[str, Any]
    sizes: Mapping[str, int]  # of the ragged dims
    staleness: float  # versions


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

    Evaluations and scores are not read; that every chunk is there, and is of its size,
    is checked.
    """
    import zarr

    if not path.exists():
        return "does not exist"
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
    except (OSError, ValueError):
        return "not a Zarr v3 group"
    attrs: dict[str, Any] = dict(group.attrs)
    if attrs.get("complete") is not True:
        return "not complete: it has no completion marker"
    damaged = wrong_chunks(path, attrs.get("chunks", {}))
    if damaged:
        return f"damaged: {damaged[0]}"
    for name in COMBINED:
        if not (path / name / "zarr.json").is_file():
            return f"not a run: it lacks the variable {name!r}"
    try:
        seen, scored = _read(path, "seen_version"), _read(path, "scored_version")
        sizes = {
            "eval": _length(path / "step"),
            "update": len(seen),
            "score": _length(path / "score_version"),
        }
    except (*BROKEN, RuntimeError) as err:
        return f"damaged: {err}"
    kept = {key: value for key, value in attrs.items() if key not in _LISTS}
    return RunArrays(path, kept, sizes, mean_staleness(seen, scored))


def _length(array: Path) -> int:
    import zarr

    return int(zarr.open_array(array, mode="r", zarr_format=3).shape[0])


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

    def load(block: np.ndarray) -> np.ndarray:
        rows = _read_all([Path(path) for path in block], name)
        return np.stack([padded(row.astype(dtype, copy=False), length) for row in rows])

    at_once = min(_MOST_RUNS, max(1, _BLOCK_BYTES // max(1, length * dtype.itemsize)))
    paths = np.array([str(run.path) for run in runs])
    blocks = da.from_array(paths, chunks=at_once, name=False)
    return blocks.map_blocks(
        load,
        dtype=dtype,
        new_axis=1,
        chunks=(blocks.chunks[0], (length,)),
        meta=np.empty((0, 0), dtype=dtype),
    )


def lazy_variable(store: Path, name: str) -> Any:
    """Return one run's variable as a Dask array in the chunks of its store."""
    import dask.array as da
    import zarr

    array = zarr.open_array(store / name, mode="r", zarr_format=3)
    return da.from_array(array, chunks=array.chunks, inline_array=True)


def _read(store: Path, name: str) -> np.ndarray:
    return _read_all([store], name)[0]


def _read_all(stores: Sequence[Path], name: str) -> list[np.ndarray]:
    """Read a variable of several runs at once: one wait for zarr's loop, not two each.

    Raises
    ------
    ValueError — if a chunk is missing or does not decode; its store is named.
    """
    from zarr.core.sync import sync

    async def read(store: Path) -> np.ndarray:
        from zarr.api.asynchronous import open_array

        try:
            array = await open_array(store=store / name, mode="r", zarr_format=3)
            return np.asarray(await array.getitem(...))
        except (*BROKEN, RuntimeError) as err:
            raise ValueError(
                f"`{name}` must be whole to be compared; got {err} at {store}. "
                "Train the run again with --again, or leave it out."
            ) from err

    async def read_all() -> list[np.ndarray]:
        return await asyncio.gather(*map(read, stores))

    return sync(read_all())
