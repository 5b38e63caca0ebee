"""Many runs as one dataset over a ``run`` dimension, and as one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pipeline.cluster_config import without_secrets
from pipeline.distinct import code_labels, data_labels, distinct_runs, same_seeds
from pipeline.run_arrays import (
    COMBINED,
    RAGGED,
    RunArrays,
    lazy_rows,
    mean_staleness,
    read_run,
)
from pipeline.schema import ATTRIBUTES, VARIABLES, describe
from pipeline.varying import field_attributes, varying_fields

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["combine_runs", "loaded", "mean_staleness", "summary_table"]

#: Attributes of a run that become coordinates, in the order in which tables show them.
COORDINATES = (
    "run_id",
    "algorithm",
    "mode",
    "dataset",
    "model",
    "partition",
    "seed",
    "status",
    "stop_reason",
    "git_commit",
    "git_dirty",
    "params_sha256",
    "versions",
    "hardware",
    "config",
)
#: Figures of a run: name when combined -> (attribute of the run, units, long name).
FIGURES = {
    "final_test_accuracy": ("test_accuracy", "1", "final test accuracy"),
    "final_train_loss": ("train_loss", "1", "final training loss"),
    "total_wall_time_s": ("wall_time_s", "s", "wall time"),
    "total_n_loss_evals": ("n_loss_evals", "1", "loss values"),
    "total_n_samples": ("n_samples", "1", "samples"),
    "total_n_gradient_evals": ("n_gradient_evals", "1", "gradient evaluations"),
    "total_bytes_moved": ("bytes_moved", "B", "bytes moved"),
    "eval_time_s": ("eval_time_s", "s", "evaluation time"),
    "total_time_s": ("total_time_s", "s", "time since the command's start"),
    "n_reruns": ("n_reruns", "1", "re-executed updates and scores"),
    "n_workers": ("n_workers", "1", "workers"),
}
#: What tells runs apart: indexes, so that ``ds.sel(mode="async")`` selects.
INDEXED = ("run_id", "algorithm", "mode", "dataset", "model", "partition", "seed")


def combine_runs(paths: Iterable[str | Path], partial: bool = False) -> xr.Dataset:
    """Combine run stores into one dataset over a ``run`` dimension.

    Variables over ``run`` alone are in memory. Those over ``eval``, ``update`` and
    ``score`` are Dask arrays of a few runs a chunk, read when they are needed; `loaded`
    reads those over ``eval`` at once. Runs may differ in length: shorter ones are
    padded with NaN (-1 for integers), and ``n_evals``, ``n_updates``, ``n_scores`` keep
    each run's own length. Parameters stay in the runs' stores.

    Parameters
    ----------
    paths : folders of Zarr run stores. A run counts once, however often it is named,
        copied, or trained again to the same parameters. ``dataset`` stands for the
        content: different data of one name have the start of their hash behind it.
        What was counted once or told apart is in the attribute ``kept_apart``.
    partial : leave out stores that are not complete instead of refusing; they are
        listed in the attribute ``skipped``.

    Returns
    -------
    Dataset over (run, eval, update, score). Its coordinates are what each run was
    (``run_id, algorithm, mode, dataset, model, partition, seed``: indexes, one of
    which `Dataset.sel` takes at a time; ``status, stop_reason``), its provenance, its
    ``store``, ``data_sha256``, and one named ``config.<key>`` for every configuration
    field that varies (their names are the attribute ``config_varies``).

    Raises
    ------
    FileNotFoundError — if a path does not exist.
    ValueError — if there is no path, or a store is not a complete run, naming each;
    later, where values are read, if a store's chunk does not decode.
    """
    unique = list(dict.fromkeys(Path(p).resolve() for p in paths))
    if not unique:
        raise ValueError(
            "`paths` must name at least one run store; got none. "
            "List runs with `ndcao runs`."
        )
    missing = [str(p) for p in unique if not p.exists()]
    if missing and not partial:
        raise FileNotFoundError(
            f"`paths` must exist; got {', '.join(missing)}. "
            "List runs with `ndcao runs`."
        )
    found = [read_run(path) for path in unique]
    refused = [
        (p, why) for p, why in zip(unique, found, strict=True) if isinstance(why, str)
    ]
    runs = [run for run in found if isinstance(run, RunArrays)]
    if refused and (not partial or not runs):
        raise ValueError(
            "`paths` must be complete run stores; got "
            + "; ".join(f"{path.name} ({why})" for path, why in refused)
            + ". Finish interrupted ones with `ndcao resume`, train damaged ones with "
            "--again, or leave them out (in Python `partial=True` does)."
        )
    return _combine(runs, [f"{path.name}: {why}" for path, why in refused])


def loaded(ds: xr.Dataset, names: Iterable[str] | None = None) -> xr.Dataset:
    """Return the dataset with the evaluations of all runs in memory.

    Parameters
    ----------
    ds : Dataset — from `combine_runs`.
    names : which variables; the default is all but those over ``update`` and ``score``.
    """
    if names is None:
        names = [str(n) for n in ds if not {"update", "score"} & {*ds[n].dims}]
    lazy = [name for name in names if ds[name].chunks is not None]
    if not lazy:
        return ds
    # Reading many small files is waiting, not computing: more threads than cores.
    # Named, as Dask would take a cluster that another thread has open for training.
    values = ds[lazy].compute(scheduler="threads", num_workers=8)
    return ds.assign(values.data_vars)


def summary_table(ds: xr.Dataset) -> pd.DataFrame:
    """Return one row a run: what it was, how it ended, and what it used.

    Parameters
    ----------
    ds : Dataset — from `combine_runs`.

    Returns
    -------
    DataFrame indexed by ``run_id``; the configuration fields that vary come last, but
    not an algorithm's settings that all of its runs share.
    """
    import pandas as pd

    def column(name: str) -> np.ndarray:
        return np.asarray(ds[name].values)

    figures = {attr: name for name, (attr, _, _) in FIGURES.items()}
    columns = {name: column(name) for name in COORDINATES[1:8]}
    for attr in ("test_accuracy", "train_loss", "wall_time_s"):
        columns[attr] = column(figures[attr])
    for attr in ("n_loss_evals", "n_samples", "n_gradient_evals"):
        columns[attr] = column(figures[attr])
    columns["mean_staleness"] = column("mean_staleness")
    columns["stop_reason"] = column("stop_reason")
    families = [
        columns["algorithm"] == name for name in np.unique(columns["algorithm"])
    ]
    for key in ds.attrs["config_varies"]:
        text = column(key).astype(str)
        if not key.startswith("config.algorithm.") or any(
            len(np.unique(text[family])) > 1 for family in families
        ):
            columns[key] = column(key)
    return pd.DataFrame(columns, index=pd.Index(column("run_id"), name="run_id"))


def _combine(runs: Sequence[RunArrays], skipped: list[str]) -> xr.Dataset:
    runs, notes = distinct_runs(runs)
    labels, more = data_labels(runs)
    settings = (
        json.loads(without_secrets(run.attrs.get("config", "{}"))) for run in runs
    )
    configs = varying_fields(
        [
            own | ({"user_code": code} if code else {})
            for own, code in zip(settings, code_labels(runs), strict=True)
        ]
    )
    coords = {name: _coordinate(name, runs) for name in COORDINATES}
    coords["dataset"] = ("run", np.array(labels), coords["dataset"][2])
    hashes = np.array([str(run.attrs.get("data_sha256", "")) for run in runs])
    coords["data_sha256"] = ("run", hashes, {"long_name": "content hash of the data"})
    stores = np.array([str(run.stored.path) for run in runs])
    coords["store"] = ("run", stores, {"long_name": "run store"})
    clocks = np.array([str(run.attrs.get("clock", "wall")) for run in runs])
    described = "virtual: times are simulated, never to be compared with measured ones"
    coords["clock"] = ("run", clocks, {"long_name": "clock", "description": described})
    coords |= {
        key: ("run", values, field_attributes(key, values))
        for key, values in configs.items()
    }
    ids, *telling = (coords[name][1].tolist() for name in (*INDEXED, *configs))
    attrs = {
        "title": "Comparison of ndcao runs",
        "Conventions": "CF-1.11",
        "source": "ndcao run stores",
        "config_varies": list(configs),
        "skipped": skipped,
        "kept_apart": [*notes, *more, *same_seeds(ids, [*zip(*telling, strict=True)])],
    }
    ds = xr.Dataset(_variables(runs), coords, attrs)
    for name in INDEXED:
        ds = ds.set_xindex(name)
    return ds


def _variables(runs: Sequence[RunArrays]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    lengths = {dim: max(run.sizes[dim] for run in runs) for dim in RAGGED}
    for name in COMBINED:
        (dim,) = VARIABLES[name].dims
        rows = lazy_rows(runs, name, lengths[dim])
        data[name] = (("run", dim), rows, describe(name))
    for name, (attr, units, long_name) in FIGURES.items():
        values = [_number(run.attrs.get(attr)) for run in runs]
        counts = name.startswith(("n_", "total_n_")) and not np.isnan(values).any()
        column = np.array(values, dtype="int64" if counts else "float64")
        data[name] = ("run", column, {"units": units, "long_name": long_name})
    for dim in RAGGED:
        counts_of = np.array([run.sizes[dim] for run in runs])
        long_name = {"eval": "evaluations", "update": "updates", "score": "scores"}[dim]
        data[f"n_{dim}s"] = ("run", counts_of, {"units": "1", "long_name": long_name})
    data["mean_staleness"] = (
        "run",
        np.array([run.staleness for run in runs]),
        {
            "units": "1",
            "long_name": "mean staleness",
            "description": "versions between what an update saw and its first score",
        },
    )
    return data


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _coordinate(name: str, runs: Sequence[RunArrays]) -> Any:
    values = [run.attrs.get(name) for run in runs]
    if name == "config":
        values = [without_secrets(str(value or "{}")) for value in values]
    attrs = {"long_name": name.replace("_", " ")}
    attrs["description"] = ATTRIBUTES[name].meaning
    if name == "seed":
        attrs["units"] = "1"
    return ("run", np.array(["" if v is None else v for v in values]), attrs)
