"""An executor in this process on a virtual clock, with scripted durations.

Mathematics is real, time is not: the same run, bit for bit, however loaded the machine
is. It simulates stragglers in tests and projects wall time for clusters nobody has
here.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, replace

from blocks.algorithm import LossRecord
from pipeline.context import Context
from pipeline.executor import Done, ScoreDone, ScoreTask, UpdateTask
from pipeline.loss_board import LocalBoard
from pipeline.placement import group_slots, place_nodes
from pipeline.updates import Resident, record_of, score_points, take_step


@dataclass(frozen=True, slots=True)
class Costs:
    """Scripted durations, in virtual seconds."""

    update_s: float = 0.002  # of one block's update, its ``delays`` come on top
    score_s: float = 0.020  # of a whole score on one worker
    latency_s: float = 0.002  # from an answer to the coordinator, and back


@dataclass(frozen=True, slots=True)
class _Share:
    task: ScoreTask


class VirtualExecutor:
    """Serial workers, each with a queue; tasks are placed as on Dask."""

    def __init__(
        self,
        context: Context,
        n_workers: int | None = None,
        costs: Costs | None = None,
        groups: list[tuple[int, ...]] | None = None,
    ) -> None:
        config = context.config
        self.context = context
        self.n_workers = n_workers or config.cluster.workers
        self.costs = costs or Costs()
        self.board = LocalBoard()
        placed = place_nodes(context.n_nodes, self.n_workers, config.own_worker)
        self._groups = groups or [group for group in placed if group]
        self._slots = group_slots(self._groups, placed)
        self._scorers = max(self.n_workers - len(set(config.own_worker)), 1)
        self._queues: list[deque[UpdateTask | _Share]] = [
            deque() for _ in range(self.n_workers)
        ]
        self._busy = [False] * self.n_workers
        self._events: list[tuple[float, int, str, object, int]] = []
        self._order = itertools.count()
        self._clock = 0.0
        self._waiting: list[UpdateTask] = []
        self._shares_left: dict[int, int] = {}
        self._scored: dict[int, ScoreTask] = {}
        self._next_version = 0
        self._published = -1
        self._resident: dict[int, Resident | None] = {}
        self._score_start: dict[int, float] = {}

    def now(self) -> float:
        """Virtual seconds."""
        return self._clock

    def groups(self) -> list[tuple[int, ...]]:
        """Nodes by group."""
        return self._groups

    def start_at(self, last: LossRecord, clock_s: float) -> None:
        """Continue a resumed run after its newest published record."""
        self.board.publish(last)
        self._published, self._next_version = last.version, last.version + 1
        self._clock = clock_s

    def submit_update(self, task: UpdateTask) -> None:
        """Queue an update for when its version is published."""
        self._at(self._clock + self.costs.latency_s, "update", task, 0)

    def submit_score(self, task: ScoreTask) -> None:
        """Queue a score's shares."""
        self._shares_left[task.version] = self._scorers
        for worker in range(self._scorers):
            self._at(self._clock + self.costs.latency_s, "share", _Share(task), worker)

    def poll(self, timeout_s: float) -> list[Done]:
        """Advance the clock to the next answer."""
        while self._events:
            self._clock, _, kind, what, worker = heapq.heappop(self._events)
            if kind == "update" and isinstance(what, UpdateTask):
                self._ready(what)
            elif kind == "share" and isinstance(what, _Share):
                self._enqueue(worker, what)
            elif kind == "end":
                self._end(what, worker)
            else:
                return [what]  # type: ignore[list-item]
        return []

    def _at(self, when: float, kind: str, what: object, worker: int) -> None:
        heapq.heappush(self._events, (when, next(self._order), kind, what, worker))

    def _ready(self, task: UpdateTask) -> None:
        if task.at_least > self._published:
            self._waiting.append(task)
        else:
            self._enqueue(self._slots[task.group] % self.n_workers, task)

    def _enqueue(self, worker: int, job: UpdateTask | _Share) -> None:
        self._queues[worker].append(job)
        self._start(worker)

    def _start(self, worker: int) -> None:
        if self._busy[worker] or not self._queues[worker]:
            return
        job = self._queues[worker].popleft()
        self._busy[worker] = True
        if isinstance(job, _Share):
            self._score_start.setdefault(job.task.version, self._clock)
            end = self._clock + self.costs.score_s / self._scorers
            self._at(end, "end", job, worker)
            return
        start = self._clock
        resident, done = take_step(
            self.context,
            self._resident.get(job.group),
            job,
            self.board,
            timeout_s=0.0,
            clock=self.now,
        )
        self._resident[job.group] = resident
        end, times = start, []
        for node, _, _ in done.times:
            spent = self.costs.update_s + self.context.config.delays.get(node, 0.0)
            times.append((node, end, end + spent))
            end += spent
        done = replace(done, times=tuple(times), worker=f"virtual-{worker}")
        self._at(end, "end", done, worker)

    def _end(self, what: object, worker: int) -> None:
        self._busy[worker] = False
        if isinstance(what, _Share):
            version = what.task.version
            self._shares_left[version] -= 1
            if self._shares_left[version] == 0:
                self._scored[version] = what.task
                self._publish()
        else:
            self._at(self._clock + self.costs.latency_s, "done", what, worker)
        self._start(worker)

    def _publish(self) -> None:
        for version in [v for v in self._scored if v < self._next_version]:
            self._score(self._scored.pop(version))  # a lost answer, given again
        while self._next_version in self._scored:
            self._score(self._scored.pop(self._next_version))
            self._published = self._next_version
            self._next_version += 1
            ready, self._waiting = self._waiting, []
            for update in ready:
                self._ready(update)

    def _score(self, task: ScoreTask) -> None:
        context, shards = self.context, list(range(self.context.config.n_shards))
        sums = score_points(context, task.points, task.steps, shards, task.subset)
        record = record_of(context, task.version, task.steps, task.subset, sums)
        self.board.publish(record)
        start = self._score_start.pop(task.version)
        done = ScoreDone(task, record, start, self._clock)
        self._at(self._clock + self.costs.latency_s, "done", done, 0)
