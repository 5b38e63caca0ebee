"""Jobs as Dask futures: one a job, on its replica's worker."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

from distributed import Future, KilledWorker, get_worker

from pipeline.cluster import Cluster
from pipeline.context import RunSpec, context_of
from pipeline.jobs import Job, JobDone, JobLost, run_job
from pipeline.placement import place_nodes
from pipeline.replicas import lost


class DaskJobs:
    """Runs a coordinator's jobs on a cluster."""

    def __init__(self, spec: RunSpec, cluster: Cluster, n_nodes: int) -> None:
        config = spec.config
        self.spec = spec
        self.client = cluster.client
        self.cluster = cluster
        self.n_workers = config.cluster.workers
        placed = place_nodes(n_nodes, self.n_workers, config.own_worker)
        self._slot = {node: w for w, nodes in enumerate(placed) for node in nodes}
        self._nonce = uuid.uuid4().hex[:8]
        self._finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._jobs: dict[str, tuple[Future[Any], Job, str]] = {}  # and its worker
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._looked = 0.0
        self._count = 0

    def close(self) -> None:
        """Cancel what is queued."""
        with self._lock:
            rest = [future for future, *_ in self._jobs.values()]
        if self.client.status == "running":
            self.client.cancel(rest)

    def now(self) -> float:
        """Wall seconds."""
        return time.time()

    def _addresses(self) -> list[str]:
        if time.monotonic() - self._looked > 1.0 or not self._names:
            self._names = self.cluster.workers()
            self._looked = time.monotonic()
        return list(self._names) or self.cluster.wait_for_workers()

    def submit(self, job: Job) -> None:
        """Queue a job; another worker takes it if the replica's own is gone."""
        addresses = self._addresses()[: self.n_workers]
        address = addresses[self._slot[job.node] % len(addresses)]
        resource = self.cluster.config.resource
        self._count += 1
        key = f"update-n{job.node}-s{job.step}-{self._nonce}-{self._count}"
        future = self.client.submit(
            run_on_worker,
            self.spec,
            job,
            key=key,
            workers=[address],
            allow_other_workers=True,
            resources={resource: 1} if resource else None,
            fifo_timeout="0ms",
            pure=False,
        )
        with self._lock:
            self._jobs[key] = (future, job, address)
        future.add_done_callback(self._finished.put)

    def poll(self, timeout_s: float) -> list[JobDone | JobLost]:
        """Answers since the last call."""
        try:
            finished = [self._finished.get(timeout=timeout_s)]
        except queue.Empty:
            return self._stranded()
        while True:
            try:
                finished.append(self._finished.get_nowait())
            except queue.Empty:
                break
        with self._lock:
            jobs = [self._jobs.pop(str(f.key), (None, None, None))[1] for f in finished]
        known = [(f, j) for f, j in zip(finished, jobs, strict=True) if j is not None]
        ready = [(f, job) for f, job in known if f.status == "finished"]
        values = self.client.gather([f for f, _ in ready], errors="skip")
        whole = len(values) == len(ready)  # else a worker died before we asked
        answers: list[JobDone | JobLost] = [self._named(v) for v in values if whole]
        if not whole:
            answers += [lost(job) for _, job in ready]
        for future, job in known:
            if future.status == "error":
                error = future.exception()
                if not isinstance(error, KilledWorker):
                    raise error
            if future.status != "finished":
                answers.append(lost(job))
        return answers + self._stranded()

    def _stranded(self) -> list[JobDone | JobLost]:
        """Jobs whose worker is gone; Dask itself runs them elsewhere, but not always.

        If no worker was left, it binds a task to the one that is gone for good, and
        those that come later never get it, ``allow_other_workers`` or not.
        """
        alive = set(self._addresses())
        with self._lock:
            gone = {k: one for k, one in self._jobs.items() if one[2] not in alive}
            for key in gone:
                del self._jobs[key]
        self.client.cancel([future for future, *_ in gone.values()])
        return [lost(job) for _, job, _ in gone.values()]

    def _named(self, done: JobDone) -> JobDone:
        return replace(done, worker=self._names.get(done.worker, done.worker))


def run_on_worker(spec: RunSpec, job: Job) -> JobDone:
    """Run a job inside a Dask task."""
    return replace(run_job(context_of(spec), job), worker=get_worker().address)
