"""The policy of asynchronous replicas: on a virtual clock, with jobs that get lost."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from blocks import ALGORITHMS
from pipeline.jobs import Job, JobDone, JobLost
from pipeline.jobs_virtual import VirtualJobs
from pipeline.replay_replicas import recompute_jobs
from pipeline.replicas import MAX_JOB_STEPS, lost

NOSYNC = {"kind": "nosync", "exchange_every": 3}
SERVED = {"kind": "async-sgd"}


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


# -- every step once, and replayable --------------------------------------------------


def test_run__reaches_its_limit_takes_each_step_once_and_replays(
    method, context_of_method, started, drive, record_of, pairs_of
) -> None:
    context = context_of_method(method, delays={1: 0.007})
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


@pytest.mark.parametrize("seed", range(3))
def test_run__lost_and_repeated_answers_leave_each_step_taken_once(
    seed, method, context_of_method, started, drive, record_of, pairs_of
) -> None:
    context = context_of_method(method)
    executor = Losing(context, seed, again=True)
    coordinator = started(context, executor)
    drive(coordinator)
    assert coordinator.n_reruns > 0
    taken = pairs_of(coordinator.outcome)
    assert len(taken) == len(set(taken)) == len(coordinator.outcome.inboxes) == 36
    again = recompute_jobs(context, record_of(coordinator.outcome))
    assert torch.equal(again, coordinator.solution()[0])


def test_accept__a_lost_job_is_given_out_again_and_has_the_same_answer(
    context_of_method, started
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


def test_accept__losses_that_keep_the_order_change_no_bit(
    context_of_method, started, drive
) -> None:
    """Alone a replica's result hangs on no order, so no loss may show in it."""
    context = context_of_method(NOSYNC | {"pull": 0.0})
    whole, torn = started(context), started(context, Losing(context, 1, again=False))
    drive(whole)
    drive(torn)
    assert torn.n_reruns > 0
    assert whole.states == torn.states
    assert torch.equal(whole.solution()[0], torn.solution()[0])


# -- stragglers, jobs, staleness ------------------------------------------------------


def test_served__a_straggler_takes_fewer_steps_and_sees_older_models(
    context_of_method, started, drive
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
    context_of_method, started, drive, pairs_of
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


def test_jobs__go_from_one_look_at_the_others_to_the_next(
    context_of_method, started, drive
) -> None:
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
    assert lengths(NOSYNC | {"pull": 0.0}, MAX_JOB_STEPS + 7) == {MAX_JOB_STEPS, 7}
    assert lengths(SERVED, 5) == {1}


def test_bytes__are_those_of_the_inboxes_and_of_what_a_server_sends_and_gets(
    context_of_method, started, drive
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


# -- costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k, a in ALGORITHMS.items() if not a.blockwise])
def test_round_costs__are_what_the_rounds_of_a_run_cost(
    kind, tiny, context_for, drive
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
