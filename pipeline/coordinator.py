"""The policy of asynchronous and bounded runs: what to submit, to accept, to stop.

Pure of I/O: an executor runs the tasks. Each (node, step) is accepted once; scores join
the newest accepted points, named at submission; with a bound n no block is more than n
steps ahead of the slowest, and with bound 0 every version waits for every block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.executor import (
    Base,
    Done,
    Executor,
    Lost,
    Points,
    ScoreDone,
    ScoreTask,
    UpdateDone,
    UpdateTask,
)
from pipeline.loss_board import record_bytes
from pipeline.rounds import Outcome

SCORES_QUEUED = 2  # one that runs, one behind it
UPDATES_QUEUED = 2


@dataclass(slots=True)
class Group:
    """What the coordinator knows of one group of blocks."""

    nodes: tuple[int, ...]
    accepted: int = 0  # steps accepted
    seen: int = -1  # newest version folded by an accepted step
    queued: deque[UpdateTask] = field(default_factory=deque)
    base: Base = field(default_factory=lambda: Base(None, 0))
    rebuild: bool = False  # the next task must carry the base
    want_states: bool = False
    early: dict[int, UpdateDone] = field(default_factory=dict)  # answers out of order

    @property
    def submitted(self) -> int:
        """Steps accepted or queued."""
        return self.accepted + len(self.queued)


@dataclass(frozen=True, slots=True)
class Limits:
    """When the coordinator stops submitting; None = no such limit."""

    steps: int | None = None
    versions: int | None = None


class Coordinator:
    """Drives one run over an executor until its limits are reached.

    Parameters
    ----------
    points : of every node, its newest accepted point (step ``steps[node]``).
    bound : steps a node may be ahead of the slowest; None = no bound.
    subset : version → draw of the scoring subset.
    n_loss : samples behind one loss value.
    keep_states : every step's states come back: for blocks whose steps cannot be taken
        again from the published losses alone.
    """

    def __init__(
        self,
        executor: Executor,
        points: Points,
        bound: int | None,
        limits: Limits,
        subset: Callable[[int], int],
        n_loss: int,
        keep_states: bool = False,
    ) -> None:
        self.executor = executor
        self.bound = bound
        self.limits = limits
        self.subset = subset
        self.n_loss = n_loss
        self.keep_states = keep_states
        self.points = dict(points)
        self.groups = [Group(nodes) for nodes in executor.groups()]
        self.steps = dict.fromkeys(self.points, 0)
        self.published = -1  # newest version known to be published
        self.scores: deque[ScoreTask] = deque()
        self.early: dict[int, ScoreDone] = {}  # by version, answered out of order
        self.fresh = True  # an accepted point is not in a submitted score yet
        self.outcome = Outcome()
        self.n_reruns = 0
        self.diverged = False
        self.stopping = False

    # -- submitting ------------------------------------------------------------------

    def fill(self) -> None:
        """Submit all that the policy allows now."""
        if self.stopping:
            return
        progress = True
        while progress:
            progress = self._maybe_score()
            for index, group in enumerate(self.groups):
                progress |= self._maybe_update(index, group)

    def _maybe_score(self) -> bool:
        version = self.published + len(self.scores) + 1
        if self.limits.versions is not None and version >= self.limits.versions:
            return False
        if len(self.scores) >= SCORES_QUEUED or not self.fresh:
            return False
        if self._resting():
            return False
        if self.bound == 0 and any(g.accepted < version for g in self.groups):
            return False
        steps = tuple(self.steps[node] for node in sorted(self.steps))
        task = ScoreTask(version, steps, dict(self.points), self.subset(version))
        self.scores.append(task)
        self.fresh = False
        self.executor.submit_score(task)
        return True

    def _resting(self) -> bool:
        """Whether every block has done its steps, so that a score would tell nobody."""
        limit = self.limits.steps
        return limit is not None and all(g.accepted >= limit for g in self.groups)

    def _maybe_update(self, index: int, group: Group) -> bool:
        step = group.submitted
        queue = 1 if self.bound == 0 or group.rebuild else UPDATES_QUEUED
        if len(group.queued) >= queue:
            return False
        if self.limits.steps is not None and step >= self.limits.steps:
            return False
        if self.bound is not None:
            slowest = min(g.accepted for g in self.groups)
            if step > slowest + self.bound:
                return False
        newest_read = group.queued[-1].at_least if group.queued else group.seen
        at_least = step if self.bound == 0 else newest_read + 1
        if at_least > self.published + len(self.scores):
            return False  # no such score is on its way
        rebuild = group.rebuild and not group.queued
        task = UpdateTask(
            group=index,
            nodes=group.nodes,
            step=step,
            at_least=at_least,
            base=group.base if rebuild else None,
            want_states=self.keep_states or (group.want_states and not group.queued),
        )
        group.rebuild = group.rebuild and not rebuild
        group.queued.append(task)
        self.executor.submit_update(task)
        return True

    # -- accepting -------------------------------------------------------------------

    def accept(self, done: Done) -> None:
        """Fold one answer into what is known."""
        if isinstance(done, ScoreDone):
            self._accept_score(done)
        elif isinstance(done, Lost):
            self.n_reruns += 1
            if isinstance(done.task, ScoreTask):
                self.executor.submit_score(done.task)
            else:
                self._requeue(done.task)
        else:
            self._accept_update(done)

    def _accept_score(self, done: ScoreDone) -> None:
        if all(done.task.version != task.version for task in self.scores):
            return  # a second answer to a score that is known already
        self.early[done.task.version] = done
        while self.scores and self.scores[0].version in self.early:
            self._fold_score(self.early.pop(self.scores.popleft().version))

    def _fold_score(self, done: ScoreDone) -> None:
        record = done.record
        self.published = record.version
        self.outcome.scores.append((record, done.start, done.end))
        used = self.outcome.counters
        used.n_loss_evals += len(record.losses)
        used.n_samples += len(record.losses) * self.n_loss
        if not all(np.isfinite(record.losses)):
            self.diverged = True
            self.stopping = True

    def _accept_update(self, done: UpdateDone) -> None:
        group = self.groups[done.task.group]
        if all(done.task is not task for task in group.queued):
            return  # taken back, or a second answer to a step that is accepted already
        group.early[done.task.step] = done
        while group.queued and group.queued[0].step in group.early:
            self._fold_update(group, group.early.pop(group.queued[0].step))

    def _fold_update(self, group: Group, done: UpdateDone) -> None:
        task = done.task
        if done.outcome == "idle":
            self._drop(group)
            return
        if done.outcome == "missed" or done.after != group.seen:
            # States are gone, or come from a re-run that folded other records than the
            # accepted ones: the next task brings what they are rebuilt from.
            self.n_reruns += 1
            self._requeue(task)
            return
        assert done.record is not None
        group.queued.popleft()
        group.accepted += 1
        group.seen = done.record.version
        if done.states is not None:
            group.base = Base(done.states, group.accepted, group.seen)
            group.want_states = False
        else:
            records = (*group.base.records, done.record)
            group.base = replace(group.base, records=records)
        for node, start, end in done.times:
            self.points[node] = done.points[node]
            self.steps[node] = group.accepted
            self.outcome.updates.append(
                (node, task.step, done.record.version, start, end, done.worker)
            )
            self.outcome.busy_s += end - start
        self.outcome.counters.add(done.counters)
        self.outcome.counters.bytes_moved += record_bytes(done.record) * len(
            group.nodes
        )
        self.fresh = True

    def _requeue(self, task: UpdateTask) -> None:
        """Forget what is queued for a group; its next task carries the base."""
        group = self.groups[task.group]
        if any(task is queued for queued in group.queued):
            self._drop(group)
            group.rebuild = True

    def _drop(self, group: Group) -> None:
        """Take back a group's queued tasks; late answers to them are not accepted."""
        group.queued.clear()
        group.early.clear()

    # -- the loop --------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or running."""
        return not self.scores and not any(g.queued for g in self.groups)
