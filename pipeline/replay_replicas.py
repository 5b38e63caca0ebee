"""Recompute a run of replicas: rounds again, or jobs in the order of the record."""

from __future__ import annotations

from typing import Any

import xarray as xr
from torch import Tensor

from blocks.algorithm import SERVER, Message, Payload
from blocks.oracle import Counters
from pipeline.context import Context
from pipeline.talk import Talk

NodeState = tuple[Any, Message]


def recompute_rounds(context: Context, ds: xr.Dataset) -> Tensor:
    """(P,) the solution after a synchronous run's rounds."""
    n_rounds = int(ds["update_step"].max()) if ds.sizes["update"] else 0
    owners = dict.fromkeys(range(context.n_nodes), 0)
    talk = Talk(context, owners, 0, None, Counters(), latency_s=0.0)
    current = {node: context.init_node(node) for node in owners}
    for k in range(n_rounds):
        heard = talk.round(k, current)
        current = {
            node: context.update(node, k, current[node][0], None, *heard[node])[:2]
            for node in owners
        }
    messages = {node: message for node, (_, message) in current.items()}
    return context.solution(messages)[0]


def recompute_jobs(context: Context, ds: xr.Dataset) -> Tensor:
    """(P,) the solution after an asynchronous run's updates, in their order."""
    current = {node: context.init_node(node) for node in range(context.n_nodes)}
    if context.served:
        return _served(context, ds, current)
    payloads = {(node, 0): m.payload for node, (_, m) in current.items()}
    needed = _last_uses(ds)
    nobody = [[-1] * context.n_nodes] * ds.sizes["update"]
    used = ds["inbox_step"].values.tolist() if "inbox_step" in ds else nobody
    for row, (node, step, _) in enumerate(_updates(ds)):
        inbox = {j: payloads[j, s] for j, s in enumerate(used[row]) if s >= 0}
        state, message, _ = context.update(node, step, current[node][0], None, inbox)
        current[node] = (state, message)
        if (node, step + 1) in needed:
            payloads[node, step + 1] = message.payload
        for key in [k for k in payloads if needed.get(k, -1) <= row]:
            del payloads[key]
    messages = {node: message for node, (_, message) in current.items()}
    return context.solution(messages)[0]


def _served(context: Context, ds: xr.Dataset, current: dict[int, NodeState]) -> Tensor:
    algorithm = context.algorithm
    server = algorithm.open(context.initial, context.buffers, context.team)
    rows = _updates(ds)
    last = {seen: row for row, (_, _, seen) in enumerate(rows)}
    views: dict[int, Payload] = {0: algorithm.view(server).payload}
    for row, (node, step, seen) in enumerate(rows):
        inbox = {SERVER: views[seen]}
        state, message, _ = context.update(node, step, current[node][0], None, inbox)
        current[node] = (state, message)
        server = algorithm.serve(server, node, message, context.spec.n_steps)
        if row + 1 in last:
            views[row + 1] = algorithm.view(server).payload
        for version in [v for v in views if last.get(v, -1) <= row]:
            del views[version]
    solution: Tensor = algorithm.view(server).solution
    return solution


def _updates(ds: xr.Dataset) -> list[tuple[int, int, int]]:
    """(node, its step before, version seen) of each update, in order."""
    return list(
        zip(
            ds["update_node"].values.tolist(),
            (ds["update_step"].values - 1).tolist(),
            ds["seen_version"].values.tolist(),
            strict=True,
        )
    )


def _last_uses(ds: xr.Dataset) -> dict[tuple[int, int], int]:
    """(node, step) → the last update that had its payload in the inbox."""
    if "inbox_step" not in ds:
        return {}
    found = {}
    for row, steps in enumerate(ds["inbox_step"].values.tolist()):
        for node, step in enumerate(steps):
            if step >= 0:
                found[node, step] = row
    return found
