"""Small asynchronous replicas, and what the tests of their policy share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.jobs_virtual import VirtualJobs
from pipeline.journal import Journal
from pipeline.replicas import ReplicaCoordinator
from pipeline.schema import variable

NOSYNC = {"kind": "nosync", "exchange_every": 3}
SERVED = {"kind": "async-sgd"}
METHODS = {
    "nosync": NOSYNC,
    "nosync-random": NOSYNC | {"attractor": "random"},
    "nosync-alone": NOSYNC | {"pull": 0.0},
    "async-sgd": SERVED | {"momentum": 0.5},
    "async-sgd-random": SERVED | {"assignment": "random"},
    "async-sgd-shuffled": SERVED | {"assignment": "shuffled"},
    "layerwise": {"kind": "layerwise-async-sgd"},
}


@pytest.fixture(params=list(METHODS))
def method(request):
    """Return the settings of one method after another."""
    return METHODS[request.param]


@pytest.fixture
def context_of_method(tiny, context_for):
    """Return the function that builds a small asynchronous context."""

    def make(algorithm: Any, **flags: Any) -> Any:
        base = {"mode": "async", "nodes": 3, "budget": {"steps": 12}}
        return context_for(tiny(**(base | flags), algorithm=algorithm))

    return make


def limits(context: Any, steps: int) -> tuple[int | None, int | None]:
    """Limits as a run of ``steps`` a node has them."""
    return (None, steps * context.n_nodes) if context.served else (steps, None)


def _drive(coordinator: ReplicaCoordinator, until: int | None = None) -> None:
    """Run a coordinator until it is idle, or has folded ``until`` updates."""
    for _ in range(20_000):
        coordinator.fill()
        if coordinator.idle or (until is not None and coordinator.count >= until):
            return
        for done in coordinator.executor.poll(0.0):
            coordinator.accept(done)
    raise AssertionError("the coordinator waits for an answer that never comes")


def _started(context: Any, executor: Any = None, steps: int = 12) -> ReplicaCoordinator:
    """A coordinator at the start of a run."""
    executor = executor or VirtualJobs(context)
    return ReplicaCoordinator(context, executor, *limits(context, steps))


def _record_of(outcome: Any) -> Any:
    """What the record holds of some updates: enough for ``recompute_jobs``."""
    import xarray as xr

    journal = Journal()
    journal.add(outcome)
    updates = np.array(journal.updates, dtype=float)
    return xr.Dataset(
        {
            "update_node": variable("update_node", updates[:, 0]),
            "update_step": variable("update_step", updates[:, 1] + 1),
            "seen_version": variable("seen_version", updates[:, 2]),
            "inbox_step": variable("inbox_step", np.array(journal.inboxes)),
        }
    )


def _pairs_of(outcome: Any) -> list[tuple[int, int]]:
    """(node, step) of each update, in order."""
    return [(node, step) for node, step, *_ in outcome.updates]


@pytest.fixture(scope="session")
def drive():
    """Return the function that runs a coordinator until it is idle."""
    return _drive


@pytest.fixture(scope="session")
def started():
    """Return the function that makes a coordinator at the start of a run."""
    return _started


@pytest.fixture(scope="session")
def record_of():
    """Return the function that keeps updates as the record holds them."""
    return _record_of


@pytest.fixture(scope="session")
def pairs_of():
    """Return the function that lists (node, step) of each update."""
    return _pairs_of
