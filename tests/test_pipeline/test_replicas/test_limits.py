"""Who gets the next job of asynchronous replicas, and where a run of them ends."""

from __future__ import annotations

import pytest
import torch

from pipeline import pack
from pipeline.jobs_virtual import VirtualJobs
from pipeline.replay_replicas import recompute_jobs
from pipeline.replicas import ReplicaCoordinator

NOSYNC = {"kind": "nosync", "exchange_every": 3}
SERVED = {"kind": "async-sgd"}


# -- who gets the next job ------------------------------------------------------------


def test_assignment__finished_gives_everybody_a_job_at_all_times(
    context_of_method, started
) -> None:
    coordinator = started(context_of_method(SERVED))
    for _ in range(25):
        coordinator.fill()
        assert len(coordinator.running) == 3
        for done in coordinator.executor.poll(0.0):
            coordinator.accept(done)


@pytest.mark.parametrize("assignment", ["random", "shuffled"])
def test_assignment__follows_the_methods_own_order(
    assignment, context_of_method, started, drive
) -> None:
    context = context_of_method(SERVED | {"assignment": assignment})
    coordinator = started(context)
    drive(coordinator)
    team, algorithm = context.team, context.algorithm
    drawn = [algorithm.next_job(0, count, team) for count in range(36)]
    queued = [node for node, views in coordinator.waiting.items() for _ in views]
    given = [0, 1, 2, *drawn]
    for node in range(3):
        jobs = given.count(node) - queued.count(node)
        assert coordinator.steps[node] == jobs
    if assignment == "shuffled":
        for cycle in range(12):
            assert sorted(drawn[3 * cycle : 3 * cycle + 3]) == [0, 1, 2]


def test_assignment__a_job_carries_the_model_as_it_was_when_given_out(
    context_of_method, started, drive
) -> None:
    """Also to a node that cannot begin it yet: its view waits with it."""
    context = context_of_method(
        SERVED | {"assignment": "shuffled"},
        delays={1: 0.05},
        cluster={"kind": "in-process", "workers": 3},
    )
    coordinator = started(context)
    drive(coordinator)
    order = [0, 1, 2] + [
        context.algorithm.next_job(0, count, context.team) for count in range(36)
    ]
    for node in range(3):
        given_at = [0] + [
            at - 2 for at, following in enumerate(order) if at > 2 and following == node
        ]
        seen = [row[2] for row in coordinator.outcome.updates if row[0] == node]
        assert seen == given_at[: len(seen)]


# -- limits, stopping, checkpoints ----------------------------------------------------


def test_limits__no_job_goes_beyond_them(context_of_method, drive) -> None:
    context = context_of_method(NOSYNC, budget={"steps": 100})
    for steps, together in ((7, None), (None, 20), (50, 20), (7, 1000)):
        coordinator = ReplicaCoordinator(context, VirtualJobs(context), steps, together)
        drive(coordinator)
        assert max(coordinator.steps.values()) <= (steps or 100)
        assert coordinator.count == min((steps or 100) * 3, together or 1000)


def test_stopping__folds_what_is_under_way_and_gives_out_nothing(
    context_of_method, started, drive
) -> None:
    coordinator = started(context_of_method(SERVED))
    coordinator.fill()
    coordinator.stopping = True
    drive(coordinator)
    assert coordinator.count == 3


def test_checkpoint__a_restored_coordinator_ends_and_the_whole_record_replays(
    method, context_of_method, tmp_path, started, drive, record_of, pairs_of
) -> None:
    context = context_of_method(method, delays={1: 0.007})
    first = started(context)
    drive(first, until=14)  # jobs that are given out now are lost with the process
    pack.save(tmp_path / "state.npz", first.to_plain())
    second = started(context)
    second.restore(pack.load(tmp_path / "state.npz"))
    assert torch.equal(second.solution()[0], first.solution()[0])
    assert second.count == second.issued == first.count
    drive(second)
    assert second.count == 36
    whole = first.outcome
    whole.add(second.outcome)
    whole.inboxes += second.outcome.inboxes
    taken = pairs_of(whole)
    assert len(taken) == len(set(taken)) == 36
    again = recompute_jobs(context, record_of(whole))
    assert torch.equal(again, second.solution()[0])


def test_checkpoint__between_jobs_changes_no_bit(
    context_of_method, tmp_path, started, drive
) -> None:
    context = context_of_method(NOSYNC | {"pull": 0.0})
    whole, first, second = started(context), started(context, steps=5), started(context)
    drive(whole)
    drive(first)
    pack.save(tmp_path / "state.npz", first.to_plain())
    second.restore(pack.load(tmp_path / "state.npz"))
    drive(second)
    assert torch.equal(second.solution()[0], whole.solution()[0])
