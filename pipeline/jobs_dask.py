"""Jobs as Dask futures: one a job, on its replica's worker."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from distributed import get_worker

from pipeline.cluster import Cluster, Roster
from pipeline.context import RunSpec, context_of
from pipeline.jobs import Job, JobDone, JobLost, run_job
from pipeline.pending import Pending
from pipeline.placement import place_nodes
from pipeline.replicas import lost
from pipeline.timeline import log_update


class DaskJobs:
    """Runs a coordinator's jobs on a cluster."""

    def __init__(self, spec: RunSpec, cluster: Cluster, n_nodes: int) -> None:
        config = spec.config
        self.spec = spec
        self.cluster = cluster
        self.client = cluster.client
        self.n_workers = config.cluster.workers
        placed = place_nodes(n_nodes, self.n_workers, config.own_worker)
        self._slot = {node: w for w, nodes in enumerate(placed) for node in nodes}
        self._nonce = uuid.uuid4().hex[:8]
        self._count = 0
        self._roster = Roster(cluster)
        self._pending: Pending[Job] = Pending(cluster.client)

    def close(self) -> None:
        """Cancel what is queued."""
        self._pending.cancel()

    def now(self) -> float:
        """Wall seconds."""
        return time.time()

    def submit(self, job: Job) -> None:
        """Queue a job; another worker takes it if the replica's own is gone."""
        self._count += 1
        where = self._roster.place(self._slot[job.node])
        unique = f"{self.spec.run_id}-{self._nonce}-{self._count}"
        key = f"update-n{job.node}-s{job.step}-{unique}"
        bound = where["workers"]
        future = self.client.submit(
            run_on_worker, self.spec, job, bound, key=key, **where
        )
        self._pending.add(future, job, bound)

    def poll(self, timeout_s: float) -> list[JobDone | JobLost]:
        """Answers since the last call."""
        answers, gone = self._pending.take(timeout_s, self._roster.names())
        done = [self._named(value) for _, value in answers]
        return [*done, *(lost(job) for job in gone)]

    def _named(self, done: JobDone) -> JobDone:
        names = self._roster.names()
        self.cluster.look_at(names)
        return replace(done, worker=names.get(done.worker, done.worker))


def run_on_worker(spec: RunSpec, job: Job, bound: list[str]) -> JobDone:
    """Run a job inside a Dask task that is bound to some workers, while they live."""
    done = run_job(context_of(spec), job)
    for i, (start, end) in enumerate(done.times):
        log_update(spec.run_id, job.node, job.step + i, start, end)
    here = get_worker().address
    return replace(done, worker=here, moved=here not in bound)
