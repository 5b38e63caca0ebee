"""What a comparison reads of each run store: its attributes and small arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays import wrong_chunks
from pipeline.schema import VARIABLES

__all__ = ["RunArrays", "lazy_rows", "mean_staleness", "padded", "read_run"]


@dataclass(frozen=True, slots=True)
class RunArrays:
    """What combining needs of one store: its place, attributes and small arrays."""

    path: Path
    attrs: Mapping[str, Any]
    sizes: Mapping[str, int]  # of the ragged dims
    evals: Mapping[str, np.ndarray]  # each (n_evals,)
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
    """Return what is needed of a run, or the reason why it cannot be had."""
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

    def read(name: str) -> np.ndarray:
        array = group[name]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[...])

    try:
        evals = {
            v.name: read(v.name) for v in VARIABLES.values() if v.dims == ("eval",)
        }
        seen, scored = read("seen_version"), read("scored_version")
        n_scores = int(group["score_version"].shape[0])  # type: ignore[union-attr]
    except KeyError as err:
        return f"not a run: it lacks the variable {err}"
    except (OSError, RuntimeError, ValueError) as err:
        return f"damaged: {err}"
    sizes = {"eval": len(evals["step"]), "update": len(seen), "score": n_scores}
    return RunArrays(path, attrs, sizes, evals, mean_staleness(seen, scored))


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """Return ``values`` lengthened with NaN, or with -1 where they are integers."""
    fill: float = np.nan if values.dtype.kind == "f" else -1
    out = np.full(length, fill, dtype=values.dtype)
    out[: len(values)] = values
    return out


def lazy_rows(runs: Sequence[RunArrays], name: str, length: int) -> Any:
    """Return a (run, length) Dask array that reads a run's row when it is needed."""
    import dask.array as da

    paths = np.array([str(run.path) for run in runs])
    dtype = np.dtype(VARIABLES[name].dtype)

    def load(block: np.ndarray) -> np.ndarray:
        import zarr

        array = zarr.open_array(f"{block[0]}/{name}", mode="r")
        return padded(np.asarray(array[...], dtype=dtype), length)[None]

    names = da.from_array(paths, chunks=1, name=False)
    return names.map_blocks(
        load, dtype=dtype, new_axis=1, chunks=((1,) * len(runs), (length,))
    )
