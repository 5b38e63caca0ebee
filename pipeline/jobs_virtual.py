"""Jobs in this process on a virtual clock, with scripted durations."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

from pipeline.context import Context
from pipeline.jobs import Job, JobDone, JobLost, run_job
from pipeline.placement import place_nodes


class VirtualJobs:
    """Serial workers; a job's mathematics is real, its time is not.

    Parameters
    ----------
    step_s : float — virtual seconds of one step; a replica's ``delays`` come on top.
    latency_s : float — from an answer to the coordinator, and back.
    """

    def __init__(
        self,
        context: Context,
        n_workers: int | None = None,
        step_s: float = 0.002,
        latency_s: float = 0.002,
    ) -> None:
        config = context.config
        self.context = context
        self.n_workers = n_workers or config.cluster.workers
        self.step_s, self.latency_s = step_s, latency_s
        placed = place_nodes(context.n_nodes, self.n_workers, config.own_worker)
        self._worker = {node: w for w, nodes in enumerate(placed) for node in nodes}
        self._free = [0.0] * self.n_workers
        self._events: list[tuple[float, int, JobDone]] = []
        self._order = itertools.count()
        self._clock = 0.0

    def now(self) -> float:
        """Virtual seconds."""
        return self._clock

    def start_at(self, clock_s: float) -> None:
        """Continue a resumed run's clock."""
        self._clock = clock_s

    def submit(self, job: Job) -> None:
        """Run a job; its answer comes when its virtual time is over."""
        worker = self._worker[job.node]
        config = self.context.config
        at = max(self._free[worker], self._clock + self.latency_s)
        spent = self.step_s + config.delays.get(job.node, 0.0)
        done = run_job(self.context, job, self.now)
        times = []
        for _ in range(job.n_steps):
            times.append((at, at + spent))
            at += spent
        self._free[worker] = at
        done = replace(done, times=tuple(times), worker=f"virtual-{worker}")
        when = at + self.latency_s
        heapq.heappush(self._events, (when, next(self._order), done))

    def poll(self, timeout_s: float) -> list[JobDone | JobLost]:
        """Advance the clock to the next answer."""
        if not self._events:
            return []
        self._clock, _, done = heapq.heappop(self._events)
        return [done]
