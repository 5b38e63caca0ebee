"""The asynchronous policy: its bound, and answers that come twice, late, or never."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.executor import Lost, ScoreDone, UpdateDone, UpdateTask
from pipeline.updates import take_step


class Wrapper:
    """An executor around another one; tests change what passes through it."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.n_workers = inner.n_workers

    def groups(self):
        return self.inner.groups()

    def submit_update(self, task) -> None:
        self.inner.submit_update(task)

    def submit_score(self, task) -> None:
        self.inner.submit_score(task)

    def now(self) -> float:
        return self.inner.now()

    def poll(self, timeout_s: float):
        return self.inner.poll(timeout_s)


class Twice(Wrapper):
    """Every answer comes twice, the second time together with the next one."""

    last: tuple = ()

    def poll(self, timeout_s: float):
        answers, self.last = [*self.inner.poll(timeout_s), *self.last], ()
        self.last = tuple(answers[:1])
        return answers + answers[:1]


class Shuffled(Wrapper):
    """Answers are held back and handed out in another order than they came."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.rng = np.random.default_rng(5)
        self.held: list = []

    def poll(self, timeout_s: float):
        for _ in range(6):
            self.held += self.inner.poll(timeout_s)
        order = self.rng.permutation(len(self.held))
        answers, self.held = [self.held[i] for i in order], []
        return answers


class Losing(Wrapper):
    """Some answers are lost, and now and then the states of a group with them."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.rng = np.random.default_rng(6)
        self.n_lost = 0

    def poll(self, timeout_s: float):
        return [self.pass_on(done) for done in self.inner.poll(timeout_s)]

    def pass_on(self, done):
        if self.rng.random() > 0.25:
            return done
        self.n_lost += 1
        if isinstance(done, UpdateDone) and self.rng.random() < 0.5:
            self.inner._resident.pop(done.task.group, None)
        return Lost(done.task)


class LosingShuffled(Losing):
    """Both at once: a lost step's successor may answer after the step's re-run."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.held: list = []

    def poll(self, timeout_s: float):
        for _ in range(4):
            self.held += super().poll(timeout_s)
        order = self.rng.permutation(len(self.held))
        answers, self.held = [self.held[i] for i in order], []
        return answers


@pytest.mark.parametrize("faults", [Twice, Shuffled, Losing, LosingShuffled])
@pytest.mark.parametrize("bound", [None, 2, 0])
def test_faulty_answers__each_step_is_accepted_once_and_the_run_replays(
    faults, bound, tiny, context_for, drive, replays
) -> None:
    context = context_for(tiny(mode="async", delays={1: 0.03}))
    coordinator = drive(context, bound, steps=12, wrap=faults)
    taken = sorted((u[0], u[1]) for u in coordinator.outcome.updates)
    assert taken == [(n, k) for n in range(context.n_nodes) for k in range(12)]
    versions = [r.version for r, _, _ in coordinator.outcome.scores]
    assert versions == list(range(len(versions)))
    assert (coordinator.n_reruns > 0) == issubclass(faults, Losing)
    assert replays(context, coordinator)


def test_bound_zero__faults_change_no_bit(tiny, context_for, drive) -> None:
    context = context_for(tiny())
    clean = drive(context, 0)
    for faults in (Twice, Shuffled, LosingShuffled):
        faulty = drive(context, 0, wrap=faults)
        for node, (point, _, _) in clean.points.items():
            np.testing.assert_array_equal(faulty.points[node][0], point)


class SecondExecution(Wrapper):
    """Runs a group's accepted first step again, elsewhere and on a newer board.

    So does Dask when the worker that held its answer dies: the step behind it needs it.
    """

    first: UpdateTask | None = None

    def submit_update(self, task) -> None:
        if task.group == 0 and task.step == 0:
            self.first = task
        super().submit_update(task)

    def poll(self, timeout_s: float):
        answers = super().poll(timeout_s)
        newer = self.inner._published > 0
        if self.first is not None and newer and self.inner._resident.get(0):
            inner, task = self.inner, self.first
            inner._resident[0], _ = take_step(
                inner.context, None, task, lambda: (inner.board.newest(0, 0), {})
            )
            self.first = None
        return answers


def test_a_step_run_again_by_dask__its_states_are_not_built_upon(
    tiny, context_for, drive, replays
) -> None:
    context = context_for(tiny(mode="async"))
    coordinator = drive(context, None, steps=12, wrap=SecondExecution)
    assert coordinator.n_reruns > 0
    assert replays(context, coordinator)


class Watching(Wrapper):
    """Notes how far ahead of the slowest each submitted step is."""

    coordinator = None

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.accepted = [0] * len(inner.groups())
        self.ahead: list[int] = []

    def submit_update(self, task) -> None:
        self.ahead.append(task.step - min(self.accepted))
        super().submit_update(task)

    def poll(self, timeout_s: float):
        answers = super().poll(timeout_s)
        for done in answers:
            if isinstance(done, UpdateDone) and done.outcome == "done":
                self.accepted[done.task.group] += 1
        return answers


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_bound_n__no_step_is_started_more_than_n_ahead_of_the_slowest(
    bound, tiny, context_for, drive
) -> None:
    context = context_for(tiny(mode="async", delays={0: 0.1}))
    watching: list[Watching] = []

    def wrap(inner):
        watching.append(Watching(inner))
        return watching[0]

    drive(context, bound, steps=12, wrap=wrap)
    assert max(watching[0].ahead) == bound


def test_no_bound__fast_blocks_leave_a_delayed_one_behind(
    tiny, context_for, drive
) -> None:
    context = context_for(tiny(mode="async", delays={0: 0.3}, own_worker=[0]))
    updates = drive(context, None, steps=10, n_workers=3).outcome.updates
    last = {node: max(u[4] for u in updates if u[0] == node) for node in range(3)}
    assert last[0] > 2 * max(last[1], last[2])


def test_score__a_second_answer_is_not_published_again(
    tiny, context_for, drive
) -> None:
    context = context_for(tiny(mode="async"))
    coordinator = drive(context, None, steps=4)
    record, start, end = coordinator.outcome.scores[-1]
    before = len(coordinator.outcome.scores)
    task = replace_task(record)
    coordinator.accept(ScoreDone(task, record, start, end))
    assert len(coordinator.outcome.scores) == before


def replace_task(record):
    from pipeline.executor import ScoreTask

    return ScoreTask(record.version, record.steps, {}, record.subset)


def test_an_answer_to_a_task_that_was_taken_back__is_ignored(
    tiny, context_for, drive
) -> None:
    context = context_for(tiny(mode="async"))
    coordinator = drive(context, None, steps=4)
    before = dict(coordinator.steps)
    stray = UpdateTask(0, coordinator.groups[0].nodes, 4, 0)
    coordinator.accept(replace(UpdateDone(stray, "done"), record=None))
    coordinator.accept(Lost(stray))
    assert coordinator.steps == before
    assert coordinator.idle
