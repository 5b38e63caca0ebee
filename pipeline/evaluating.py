"""Score a trained network again, and say what the score was when it was trained."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from pipeline.code_changes import changes_since
from pipeline.config import RunConfig
from pipeline.context import Context, RunSpec
from pipeline.data_store import DataStore, open_store
from pipeline.network_check import answers
from pipeline.own_data import data_of
from pipeline.pack import tensor
from pipeline.record import same_platform
from pipeline.runs import standard_of
from pipeline.store import ensure_store
from pipeline.trial import try_user_code
from pipeline.trust import require
from pipeline.user_code import recorded_code

logger = logging.getLogger(__name__)

ELSEWHERE = 0.005  # an accuracy's difference that another platform's rounding may make


def score_again(
    ds: xr.Dataset, dataset: str | Path | None, *, trust: bool
) -> dict[str, Any]:
    """Score a run's final network (see ``runs.evaluate_run``)."""
    config = RunConfig.model_validate_json(ds.attrs["config"])
    recorded = recorded_code(ds.attrs)
    require(config, ds.attrs["run_id"], trust=trust, recorded=recorded)
    if config.device == "cuda" and not torch.cuda.is_available():
        config = config.model_copy(update={"device": "cpu"})
    data = data_of(ds) if dataset is None else open_store(ensure_store(dataset))
    relabel = _fitted(data, ds)
    spec = RunSpec(
        ds.attrs["run_id"],
        config,
        str(data.path),
        data.content_sha256,
        ds.attrs["n_steps"],
        ds["params"].values,
        ds["buffers"].values if "buffers" in ds else None,
    )
    context = Context(spec, data, standard_of(ds))
    try_user_code(context, trains=False)
    buffers = tensor(ds["buffers"].values) if "buffers" in ds else None
    params = tensor(ds["params"].values)
    sums = context.evaluate(params, buffers, "test", range(config.n_shards), relabel)
    total = np.zeros(3)
    for shard in sums:
        total += shard
    found = {
        "run_id": ds.attrs["run_id"],
        "dataset": data.name,
        "test_loss": float(total[0] / total[2]),
        "test_accuracy": float(total[1] / total[2]),
        "n_test": int(total[2]),
        "recorded_test_accuracy": ds.attrs["test_accuracy"],
    }
    shape = data.image_shape
    now = answers(context.model, params, buffers, shape, context.loss_function)
    warnings = changes_since(ds, config, context.model.module, now)
    if data.content_sha256 == ds.attrs["data_sha256"]:
        warnings += _compared(found, ds, config)
    return {**found, "warnings": warnings}


def _fitted(data: DataStore, ds: xr.Dataset) -> np.ndarray | None:
    """Class of the run by class of the data; None where they are the same.

    Raises
    ------
    ValueError — if images have another shape, or classes other names.
    """
    shape = tuple(json.loads(ds.attrs["image_shape"]))
    if (data.image_shape, data.n_classes) != (shape, ds.attrs["n_classes"]):
        raise ValueError(
            f"`dataset` must have images {shape} and {ds.attrs['n_classes']} classes; "
            f"got {data.image_shape} and {data.n_classes}. Choose one like the run's."
        )
    ours, theirs = json.loads(ds.attrs["class_names"]), list(data.class_names)
    if theirs == ours:
        return None
    if sorted(theirs) != sorted(ours) or len(set(ours)) < len(ours):
        other = next((name for name in theirs if name not in ours), theirs[0])
        raise ValueError(
            f"`dataset` must have the run's classes {_listed(ours)}; got {other!r} "
            f"among {_listed(theirs)} at {data.path}. Choose data with the same "
            "classes, or name them alike when ingesting."
        )
    return np.array([ours.index(name) for name in theirs])


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:6])
    return shown if len(names) <= 6 else f"{shown}, … ({len(names)})"


def _compared(found: dict[str, Any], ds: xr.Dataset, config: RunConfig) -> list[str]:
    """Say that a run's own data give another score than the one recorded.

    On the platform of the run scores are exact; elsewhere rounding may differ.
    """
    recorded = ds.attrs["test_accuracy"]
    accuracy = math.nan if recorded is None else float(recorded)
    loss = float(ds["test_loss"].values[-1]) if ds.sizes["eval"] else math.nan
    same = (
        same_platform(ds) and config.device == json.loads(ds.attrs["config"])["device"]
    )
    limit = 0.0 if same else ELSEWHERE
    apart = abs(found["test_accuracy"] - accuracy) > limit
    apart |= abs(found["test_loss"] - loss) > limit * abs(loss)  # False for NaN
    if not apart:
        return []
    where = "" if same else ", more than another platform's rounding makes"
    text = (
        f"`run` {found['run_id']} must score on its own data as recorded, accuracy "
        f"{accuracy:.6g} and loss {loss:.6g}; got {found['test_accuracy']:.6g} and "
        f"{found['test_loss']:.6g}{where}. The network's code, or a file or variable "
        "that it reads, is another than at training."
    )
    logger.warning("%s", text)
    return [text]
