"""Recompute a run from its record alone, in one process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from blocks.algorithm import LossRecord, Message
from pipeline.code_changes import changes_since
from pipeline.config import RunConfig
from pipeline.context import Context, RunSpec
from pipeline.executor import ScoreTask
from pipeline.initial import initial_values
from pipeline.network_check import answers, check_size
from pipeline.own_data import data_of
from pipeline.pack import host, tensor
from pipeline.processors import several
from pipeline.record import params_sha256, same_platform
from pipeline.replay_replicas import recompute_jobs, recompute_rounds
from pipeline.rules import difference
from pipeline.run_store import open_run
from pipeline.runs import find_run, results_folder, store_path, summary
from pipeline.trust import require
from pipeline.updates import published
from pipeline.user_code import recorded_code

logger = logging.getLogger(__name__)

ELSEWHERE = 1e-3  # a parameter's difference that another platform's rounding may make


def replay(
    run: str | Path, *, results: str | Path | None = None, trust: bool = False
) -> dict[str, Any]:
    """Recompute a run's final parameters from its record and compare their hash.

    Neither stored parameters nor stored losses are read but to compare: the record says
    which version every update folded and which steps every score joined, and the seed
    and the configuration determine the rest.

    Returns
    -------
    dict — the line of ``train --json`` with the recomputed ``params_sha256``, and
        ``matches``, ``recorded_params_sha256``, ``losses_match``, ``same_platform``,
        ``max_difference`` (of a parameter). Elsewhere than on the kind of processor and
        the package versions of the run, a difference up to ``ELSEWHERE`` matches too.

    Raises
    ------
    FileNotFoundError, ValueError — if the run or its data are not there or damaged.
    """
    folder, run_id = find_run(run, results)
    ds = open_run(store_path(folder, run_id))
    ds.attrs["store"] = str(store_path(folder, run_id))
    config = RunConfig.model_validate_json(ds.attrs["config"])
    require(config, run_id, trust=trust, recorded=recorded_code(ds.attrs))
    context = _context(ds, config, results_folder(results))
    check_size(run_id, ds.sizes["parameter"], context.model.n_params)
    params, losses_match = recompute(context, ds)
    digest = params_sha256(host(params))
    line = summary(ds)
    recorded = line["params_sha256"]
    here = same_platform(ds)
    apart = float(np.abs(host(params) - ds["params"].values).max())
    near = not here and apart <= ELSEWHERE
    mixed = several(run_id, json.loads(ds.attrs["hardware"]).get("processors", []))
    for text in mixed:
        logger.warning("%s", text)
    line["warnings"] = other_rules(ds, config) + _changes(context, ds) + mixed
    return {
        **line,
        "status": "replayed",
        "params_sha256": digest,
        "recorded_params_sha256": recorded,
        "matches": digest == recorded or near,
        "losses_match": losses_match,
        "same_platform": here,
        "max_difference": apart,
    }


def other_rules(ds: xr.Dataset, config: RunConfig) -> list[str]:
    """Say, and log, that a run followed other rules of arithmetic; [] if not.

    Only this version's arithmetic is kept: such a run cannot be recomputed.
    """
    why = difference(config, json.loads(ds.attrs.get("rules", "[]")))
    if not why:
        return []
    text = (
        f"`run` {ds.attrs['run_id']} was recorded under other rules of arithmetic than "
        f"this version follows ({why}), so its parameters need not come out again. "
        "Train it anew to have a run that replays."
    )
    logger.warning("%s", text)
    return [text]


def _changes(context: Context, ds: xr.Dataset) -> list[str]:
    params = tensor(ds["params"].values, context.device)
    own = ds["buffers"].values if "buffers" in ds else None
    buffers = None if own is None else tensor(own, context.device)
    shape = context.data.image_shape
    now = answers(context.model, params, buffers, shape, context.loss_function)
    return changes_since(ds, context.config, context.model.module, now)


def _context(ds: xr.Dataset, config: RunConfig, results: Path) -> Context:
    data = data_of(ds)
    params, buffers = initial_values(config, data, results)
    spec = RunSpec(
        ds.attrs["run_id"],
        config,
        str(data.path),
        data.content_sha256,
        ds.attrs["n_steps"],
        params,
        buffers,
    )
    return Context(spec, data)


def recompute(context: Context, ds: xr.Dataset) -> tuple[Tensor, bool]:
    """Take a record's updates and scores again.

    Returns the final parameters (P,) and whether all losses were the recorded ones.
    """
    if context.talks:
        jobs = not context.config.barrier
        again = recompute_jobs if jobs else recompute_rounds
        return again(context, ds), True
    messages, losses_match = recompute_scored(context, ds)
    return context.solution(messages)[0], losses_match


def recompute_scored(
    context: Context, ds: xr.Dataset
) -> tuple[dict[int, Message], bool]:
    """Walk the record of blocks, or of a replica that is alone.

    Every score comes after the updates it joined, every update after its version.
    Returns the final messages and whether all losses were the recorded ones.
    """
    seen = _seen_versions(context, ds)
    folded = [set(versions) for versions in seen]
    nodes = range(context.n_nodes)
    current = {node: context.init_node(node) for node in nodes}
    taken = dict.fromkeys(nodes, 0)
    records: dict[int, LossRecord] = {}
    credits: dict[tuple[int, int], Tensor] = {}  # by version, node; until it is folded

    def advance(node: int, until: int) -> None:
        while taken[node] < until:
            step = taken[node]
            version = seen[node][step]
            record = records[version] if context.algorithm.scored else None
            credit = credits.pop((version, node), None)
            state, message, _ = context.update(
                node, step, current[node][0], record, credit=credit
            )
            current[node] = (state, message)
            taken[node] = step + 1

    losses_match = True
    all_shards = list(range(context.config.n_shards))
    rows = zip(
        ds["score_version"].values.tolist(),
        ds["score_steps"].values.tolist(),
        ds["score_subset"].values.tolist(),
        ds["score_losses"].values.tolist(),
        strict=True,
    )
    for version, steps, subset, recorded in rows:
        for node in nodes:
            advance(node, steps[node])
        messages = {node: message for node, (_, message) in current.items()}
        task = ScoreTask(version, tuple(steps), {}, subset)
        parts = context.score(messages, steps, all_shards, version)
        records[version], found = published(context, task, parts)
        losses = records[version].losses
        losses_match &= np.array_equal(losses, recorded, equal_nan=True)
        folding = (n for n in found if version in folded[n])
        credits |= {(version, node): found[node] for node in folding}
    for node in nodes:
        advance(node, len(seen[node]))
    return {node: message for node, (_, message) in current.items()}, losses_match


def _seen_versions(context: Context, ds: xr.Dataset) -> list[list[int]]:
    """By node: the version folded by each of its steps, in order."""
    seen: list[dict[int, int]] = [{} for _ in range(context.n_nodes)]
    rows = zip(
        ds["update_node"].values.tolist(),
        ds["update_step"].values.tolist(),
        ds["seen_version"].values.tolist(),
        strict=True,
    )
    for node, step, version in rows:
        seen[node][step - 1] = version
    return [[steps[k] for k in range(len(steps))] for steps in seen]
