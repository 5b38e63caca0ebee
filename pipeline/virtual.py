"""An executor in this process on a virtual clock, with scripted durations.

Mathematics is real, time is not: the same run, bit for bit, however loaded the machine
is. It simulates stragglers in tests and projects wall time for clusters nobody has
here.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, replace

import numpy as np

from blocks.algorithm import LossRecord
from pipeline.context import Context
from pipeline.executor import Done, ScoreDone, ScoreTask, UpdateTask
from pipeline.loss_board import LocalBoard
from pipeline.placement import group_slots, place_nodes
from pipeline.scoring import Credits
from pipeline.updates import Resident, published, score_points, take_step

_FIRST, _LATER = 0, 1  # updates and publications go before shares, as on Dask


@dataclass(frozen=True, slots=True)
class Costs:
    """Scripted durations, in virtual seconds.

    A worker does one thing at a time; so do client and scheduler together, which is
    what ``task_s`` stands for. Neither the size of a message nor the width of the
    network is modelled.
    """

    update_s: float = 0.002  # of one block's update, its ``delays`` come on top
    score_s: float = 0.020  # of all shards of a score on one worker
    latency_s: float = 0.002  # from an answer to the coordinator, and back
    start_s: float = 0.0  # of a share, before its first shard: points, probes
    task_s: float = 0.0  # of client and scheduler for a task that is submitted
    hop_s: float = 0.0  # from a task's end to the start of one that waits for it
    move_s: float = 0.0  # and if that is on another worker
    share_s: float = 0.0  # and for every share beyond the first worker's own
    publish_s: float = 0.0  # of publishing, on the first worker; 0: on none
    read_s: float = 0.0  # of reading the board, once a group and step


@dataclass(frozen=True, slots=True)
class _Share:
    task: ScoreTask
    part: float  # of all shards


@dataclass(frozen=True, slots=True)
class _Publication:
    task: ScoreTask


_Job = UpdateTask | _Share | _Publication


class VirtualExecutor:
    """Serial workers, each with a queue; tasks are placed and ordered as on Dask."""

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
        scorers = max(self.n_workers - len(set(config.own_worker)), 1)
        shards = np.array_split(np.arange(config.n_shards), scorers)
        self._parts = [len(part) / config.n_shards for part in shards if len(part)]
        self._queues: list[list[tuple[int, int, _Job]]] = [
            [] for _ in range(self.n_workers)
        ]
        self._busy = [False] * self.n_workers
        self._events: list[tuple[float, int, str, object, int]] = []
        self._order = itertools.count()
        self._clock = 0.0
        self._desk = 0.0  # when client and scheduler have sent all that was submitted
        self._waiting: list[UpdateTask] = []
        self._scores: dict[int, ScoreTask] = {}  # whose publication is not submitted
        self._needs: dict[int, int] = {}  # by version: what its publication waits for
        self._newest = -1  # published, as far as the client knows
        self._published = -1
        self._resident: dict[int, Resident | None] = {}
        self._score_start: dict[int, float] = {}
        self._credits: tuple[int, Credits] = (-1, {})  # of the newest version

    def now(self) -> float:
        """Virtual seconds."""
        return self._clock

    def groups(self) -> list[tuple[int, ...]]:
        """Nodes by group."""
        return self._groups

    def start_at(self, last: LossRecord, clock_s: float) -> None:
        """Continue a resumed run after its newest published record."""
        self.board.publish(last)
        self._published = self._newest = last.version
        self._clock = self._desk = clock_s

    def submit_update(self, task: UpdateTask) -> None:
        """Queue an update for when its version is published."""
        self._send("update", task, 0)

    def submit_score(self, task: ScoreTask) -> None:
        """Queue a score's shares; its publication once the one before it is known."""
        self._needs[task.version] = len(self._parts) + 1
        for worker, part in enumerate(self._parts):
            self._send("share", _Share(task, part), worker)
        self._scores[task.version] = task
        self._publish_next()

    def poll(self, timeout_s: float) -> list[Done]:
        """Advance the clock to the next answer."""
        while self._events:
            self._clock, _, kind, what, worker = heapq.heappop(self._events)
            if kind == "update" and isinstance(what, UpdateTask):
                self._ready(what)
            elif kind == "share" and isinstance(what, _Share):
                self._enqueue(worker, what, _LATER)
            elif kind == "publication" and isinstance(what, ScoreTask):
                self._gather(what)
            elif kind == "gathered" and isinstance(what, _Publication):
                if self.costs.publish_s:
                    self._enqueue(worker, what, _FIRST)
                else:
                    self._publish(what.task)
            elif kind == "end":
                self._end(what, worker)
            else:
                if isinstance(what, ScoreDone):
                    self._newest = max(self._newest, what.record.version)
                    self._publish_next()
                return [what]  # type: ignore[list-item]
        return []

    def _at(self, when: float, kind: str, what: object, worker: int) -> None:
        heapq.heappush(self._events, (when, next(self._order), kind, what, worker))

    def _send(self, kind: str, what: object, worker: int) -> None:
        """Submit a task; client and scheduler take one after another."""
        self._desk = max(self._desk, self._clock) + self.costs.task_s
        self._at(self._desk + self.costs.latency_s, kind, what, worker)

    def _publish_next(self) -> None:
        """Submit publications in turn; one whose answer was lost comes again."""
        for version in [v for v in self._scores if v <= self._newest + 1]:
            self._send("publication", self._scores.pop(version), 0)

    def _ready(self, task: UpdateTask) -> None:
        credited = self.context.activity is None or self._credits[0] == self._published
        if task.at_least > self._published or not credited:
            self._waiting.append(task)
        else:
            self._enqueue(self._worker_of(task), task, _FIRST)

    def _worker_of(self, task: UpdateTask) -> int:
        return self._slots[task.group] % self.n_workers

    def _enqueue(self, worker: int, job: _Job, priority: int) -> None:
        heapq.heappush(self._queues[worker], (priority, next(self._order), job))
        self._start(worker)

    def _start(self, worker: int) -> None:
        if self._busy[worker] or not self._queues[worker]:
            return
        _, _, job = heapq.heappop(self._queues[worker])
        self._busy[worker] = True
        if isinstance(job, UpdateTask):
            self._update(job, worker)
            return
        spent = self.costs.publish_s
        if isinstance(job, _Share):
            self._score_start.setdefault(job.task.version, self._clock)
            spent = self.costs.start_s + self.costs.score_s * job.part
        self._at(self._clock + spent, "end", job, worker)

    def _update(self, job: UpdateTask, worker: int) -> None:
        resident, done = take_step(
            self.context,
            self._resident.get(job.group),
            job,
            lambda: (self.board.newest(job.at_least, 0.0), self._credits[1]),
            clock=self.now,
        )
        self._resident[job.group] = resident
        end, times = self._clock + self.costs.read_s, []
        for node, _, _ in done.times:
            spent = self.costs.update_s + self.context.config.delays.get(node, 0.0)
            times.append((node, end, end + spent))
            end += spent
        done = replace(done, times=tuple(times), worker=f"virtual-{worker}")
        self._at(end, "end", done, worker)

    def _end(self, what: object, worker: int) -> None:
        self._busy[worker] = False
        if isinstance(what, _Share):
            self._gather(what.task)
        elif isinstance(what, _Publication):
            self._publish(what.task)
        else:
            self._at(self._clock + self.costs.latency_s, "done", what, worker)
        self._start(worker)

    def _gather(self, task: ScoreTask) -> None:
        """Count what a publication waits for; then move the shares to it."""
        self._needs[task.version] -= 1
        if self._needs[task.version]:
            return
        others = len(self._parts) - 1
        moved = self.costs.move_s + others * self.costs.share_s if others else 0.0
        when = self._clock + self.costs.hop_s + moved
        self._at(when, "gathered", _Publication(task), 0)

    def _publish(self, task: ScoreTask) -> None:
        shards = list(range(self.context.config.n_shards))
        parts = score_points(self.context, task, shards)
        record, credits = published(self.context, task, parts)
        if self.board.publish(record):
            self._credits = record.version, credits
        self._published = max(self._published, record.version)
        start = self._score_start.pop(task.version)
        done = ScoreDone(task, record, start, self._clock)
        self._at(self._clock + self.costs.latency_s, "done", done, 0)
        ready, self._waiting = self._waiting, []
        for update in ready:
            if update.at_least > self._published:
                self._waiting.append(update)
                continue
            moved = self.costs.move_s if self._worker_of(update) else 0.0
            self._at(self._clock + self.costs.hop_s + moved, "update", update, 0)
