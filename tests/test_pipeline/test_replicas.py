"""The policy of asynchronous replicas: on a virtual clock, with jobs that get lost."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from blocks import ALGORITHMS
from pipeline import pack
from pipeline.jobs import Job, JobDone, JobLost
from pipeline.jobs_virtual import VirtualJobs
from pipeline.journal import Journal
from pipeline.replay_replicas import recompute_jobs
from pipeline.replicas import MAX_JOB_STEPS, ReplicaCoordinator, lost
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


@pytest.fixture
def context_of_method(tiny, context_for):
    """Return the function that builds a small asynchronous context."""

    def make(algorithm: Any, **flags: Any) -> Any:
        base = {"mode": "async", "nodes": 3, "budget": {"steps": 12}}
        return context_for(tiny(**(base | flags), algorithm=algorithm))

    return make


class Losing(VirtualJobs):
    """Loses some jobs; their answers, or second ones, may still come later."""

    def __init__(self, context: Any, seed: int, *, again: bool) -> None:
        super().__init__(context)
        self.random = random.Random(seed)
        self.again = again
        self.late: list[JobDone | JobLost] = []
        self.n_lost = 0

    def poll(self, timeout_s: float) -> list[JobDone | JobLost]:
        """The next answer, or word of its loss, or an old answer once more."""
        answers: list[JobDone | JobLost] = []
        for done in super().poll(timeout_s):
            assert isinstance(done, JobDone)
            if self.n_lost == 0 or self.random.random() < 0.3:
                self.n_lost += 1
                answers.append(lost(done.job))
                self.late += [done] if self.again else []
            else:
                answers.append(done)
                self.late += [done, lost(done.job)] if self.again else []
        if self.late and self.random.random() < 0.5:
            at = self.random.randrange(len(self.late))
            answers.insert(self.random.randrange(2), self.late.pop(at))
        return answers


def limits(context: Any, steps: int) -> tuple[int | None, int | None]:
    """Limits as a run of ``steps`` a node has them."""
    return (None, steps * context.n_nodes) if context.served else (steps, None)


def drive(coordinator: ReplicaCoordinator, until: int | None = None) -> None:
    """Run a coordinator until it is idle, or has folded ``until`` updates."""
    for _ in range(20_000):
        coordinator.fill()
        if coordinator.idle or (until is not None and coordinator.count >= until):
            return
        for done in coordinator.executor.poll(0.0):
            coordinator.accept(done)
    raise AssertionError("the coordinator waits for an answer that never comes")


def started(context: Any, executor: Any = None, steps: int = 12) -> ReplicaCoordinator:
    """A coordinator at the start of a run."""
    executor = executor or VirtualJobs(context)
    return ReplicaCoordinator(context, executor, *limits(context, steps))


def record_of(outcome: Any) -> Any:
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


def pairs_of(outcome: Any) -> list[tuple[int, int]]:
    """(node, step) of each update, in order."""
    return [(node, step) for node, step, *_ in outcome.updates]


# -- every step once, and replayable --------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_run__reaches_its_limit_takes_each_step_once_and_replays(
    name, context_of_method
) -> None:
    context = context_of_method(METHODS[name], delays={1: 0.007})
    coordinator = started(context)
    drive(coordinator)
    taken = pairs_of(coordinator.outcome)
    assert len(taken) == coordinator.count == 36
    for node in range(3):
        own = [step for n, step in taken if n == node]
        assert own == list(range(coordinator.steps[node]))
    if not context.served:
        assert set(coordinator.steps.values()) == {12}
    again = recompute_jobs(context, record_of(coordinator.outcome))
    assert torch.equal(again, coordinator.solution()[0])
    assert not torch.equal(again, context.initial)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("seed", range(3))
def test_run__lost_and_repeated_answers_leave_each_step_taken_once(
    seed, name, context_of_method
) -> None:
    context = context_of_method(METHODS[name])
    executor = Losing(context, seed, again=True)
    coordinator = started(context, executor)
    drive(coordinator)
    assert coordinator.n_reruns > 0
    taken = pairs_of(coordinator.outcome)
    assert len(taken) == len(set(taken)) == len(coordinator.outcome.inboxes) == 36
    again = recompute_jobs(context, record_of(coordinator.outcome))
    assert torch.equal(again, coordinator.solution()[0])


def test_accept__a_lost_job_is_given_out_again_and_has_the_same_answer(
    context_of_method,
) -> None:
    context = context_of_method(SERVED)
    given: list[Job] = []

    class Noting(VirtualJobs):
        def submit(self, job: Job) -> None:
            given.append(job)
            super().submit(job)

    coordinator = started(context, Noting(context))
    coordinator.fill()
    first = given[1]
    assert len(given) == 3
    (done,) = coordinator.executor.poll(0.0)
    coordinator.accept(done)
    before = (coordinator.count, coordinator.issued)
    coordinator.accept(JobLost(first))
    assert given[-1] is first
    assert (coordinator.count, coordinator.issued) == before
    assert coordinator.n_reruns == 1
    found = [d for _ in range(3) for d in coordinator.executor.poll(0.0)]
    one, two = [d for d in found if d.job.node == first.node]
    assert one.state == two.state
    coordinator.accept(one)
    folded = coordinator.solution()[0]
    coordinator.accept(two)
    assert coordinator.count == before[0] + 1
    assert torch.equal(coordinator.solution()[0], folded)


def test_accept__losses_that_keep_the_order_change_no_bit(context_of_method) -> None:
    """Alone a replica's result hangs on no order, so no loss may show in it."""
    context = context_of_method(METHODS["nosync-alone"])
    whole, torn = started(context), started(context, Losing(context, 1, again=False))
    drive(whole)
    drive(torn)
    assert torn.n_reruns > 0
    assert whole.states == torn.states
    assert torch.equal(whole.solution()[0], torn.solution()[0])


# -- stragglers, jobs, staleness ------------------------------------------------------


def test_served__a_straggler_takes_fewer_steps_and_sees_older_models(
    context_of_method,
) -> None:
    context = context_of_method(
        SERVED, delays={1: 0.05}, cluster={"kind": "in-process", "workers": 3}
    )
    coordinator = started(context)
    drive(coordinator)
    steps = coordinator.steps
    assert steps[1] < min(steps[0], steps[2]) / 2
    assert sum(steps.values()) == 36
    age: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for now, (node, _, seen, *_) in enumerate(coordinator.outcome.updates):
        assert 0 <= seen <= now
        age[node].append(now - seen)
    assert np.mean(age[1]) > 2 * np.mean(age[0] + age[2])


def test_nosync__a_straggler_holds_nobody_up_and_is_heard_as_it_was(
    context_of_method,
) -> None:
    context = context_of_method(
        NOSYNC, delays={1: 0.05}, cluster={"kind": "in-process", "workers": 3}
    )
    coordinator = started(context)
    drive(coordinator)
    ends = {node: end for node, _, _, _, end, _ in coordinator.outcome.updates}
    assert ends[0] == ends[2] < ends[1] / 5
    heard = {
        (node, step): inbox
        for (node, step), inbox in zip(
            pairs_of(coordinator.outcome), coordinator.outcome.inboxes, strict=True
        )
    }
    assert heard[0, 9][0] == 9  # itself as it is
    assert heard[0, 9][1] == 0  # the straggler as it was
    assert heard[1, 9] == (12, 9, 12)
    assert all(heard[0, k] == (-1, -1, -1) for k in range(12) if k % 3 or k == 0)


def test_jobs__go_from_one_look_at_the_others_to_the_next(context_of_method) -> None:
    def lengths(algorithm: Any, steps: int) -> set[int]:
        context = context_of_method(algorithm, budget={"steps": steps})
        given: list[int] = []

        class Noting(VirtualJobs):
            def submit(self, job: Job) -> None:
                given.append(job.n_steps)
                super().submit(job)

        drive(started(context, Noting(context), steps))
        return set(given)

    assert lengths(NOSYNC, 12) == {3}
    assert lengths(NOSYNC, 11) == {3, 2}
    assert lengths(METHODS["nosync-alone"], MAX_JOB_STEPS + 7) == {MAX_JOB_STEPS, 7}
    assert lengths(SERVED, 5) == {1}


def test_bytes__are_those_of_the_inboxes_and_of_what_a_server_sends_and_gets(
    context_of_method,
) -> None:
    context = context_of_method(NOSYNC)
    coordinator = started(context)
    drive(coordinator)
    n_params = context.model.n_params
    looks = sum(max(row) >= 0 for row in coordinator.outcome.inboxes)
    assert looks == 9  # steps 3, 6, 9 of three nodes
    assert coordinator.outcome.counters.bytes_moved == looks * 2 * 4 * n_params
    context = context_of_method(SERVED)
    coordinator = started(context)
    drive(coordinator)
    assert coordinator.outcome.counters.bytes_moved == 36 * 2 * 4 * n_params
    assert coordinator.outcome.counters.n_gradient_evals == 36


# -- who gets the next job ------------------------------------------------------------


def test_assignment__finished_gives_everybody_a_job_at_all_times(
    context_of_method,
) -> None:
    coordinator = started(context_of_method(SERVED))
    for _ in range(25):
        coordinator.fill()
        assert len(coordinator.running) == 3
        for done in coordinator.executor.poll(0.0):
            coordinator.accept(done)


@pytest.mark.parametrize("assignment", ["random", "shuffled"])
def test_assignment__follows_the_methods_own_order(
    assignment, context_of_method
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
    context_of_method,
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


def test_limits__no_job_goes_beyond_them(context_of_method) -> None:
    context = context_of_method(NOSYNC, budget={"steps": 100})
    for steps, together in ((7, None), (None, 20), (50, 20), (7, 1000)):
        coordinator = ReplicaCoordinator(context, VirtualJobs(context), steps, together)
        drive(coordinator)
        assert max(coordinator.steps.values()) <= (steps or 100)
        assert coordinator.count == min((steps or 100) * 3, together or 1000)


def test_stopping__folds_what_is_under_way_and_gives_out_nothing(
    context_of_method,
) -> None:
    coordinator = started(context_of_method(SERVED))
    coordinator.fill()
    coordinator.stopping = True
    drive(coordinator)
    assert coordinator.count == 3


@pytest.mark.parametrize("name", list(METHODS))
def test_checkpoint__a_restored_coordinator_ends_and_the_whole_record_replays(
    name, context_of_method, tmp_path
) -> None:
    context = context_of_method(METHODS[name], delays={1: 0.007})
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


def test_checkpoint__between_jobs_changes_no_bit(context_of_method, tmp_path) -> None:
    context = context_of_method(METHODS["nosync-alone"])
    whole, first, second = started(context), started(context, steps=5), started(context)
    drive(whole)
    drive(first)
    pack.save(tmp_path / "state.npz", first.to_plain())
    second.restore(pack.load(tmp_path / "state.npz"))
    drive(second)
    assert torch.equal(second.solution()[0], whole.solution()[0])


# -- costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k, a in ALGORITHMS.items() if not a.blockwise])
def test_round_costs__are_what_the_rounds_of_a_run_cost(
    kind, tiny, context_for
) -> None:
    from pipeline.asynchronous import ReplicaTraining
    from pipeline.engines import InProcess
    from pipeline.harness import costs_in

    mode = "sync" if "sync" in ALGORITHMS[kind].modes else "async"
    config = tiny(algorithm={"kind": kind}, mode=mode, budget={"steps": 6})
    context = context_for(config)
    costs = costs_in(context)
    if mode == "async":
        training = ReplicaTraining(context.spec, context, None, None, None)
        training.begin(VirtualJobs(context), None)
        drive(training.coordinator)
        used = training.coordinator.outcome.counters
    else:
        engine = InProcess(context.spec)
        used = dataclasses.replace(engine.init_cost)
        used.add(engine.run(0, 6).counters)
    assert costs.loss_values == 0
    assert used.n_gradient_evals == pytest.approx(6 * costs.gradient_evals)
    assert used.n_samples >= 6 * costs.samples
    if used.n_loss_evals == 0:
        assert used.n_samples == pytest.approx(6 * costs.samples)
