"""The cluster of a batch: open, lent out, lost, opened again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distributed.client import ClosedClientError

from flows.stopping import StopRequest
from pipeline.cluster import ANSWER_S, Cluster, open_cluster
from pipeline.config import ClusterConfig
from pipeline.leases import ClusterLost, Leases, NoLease, lent, workers_needed

if TYPE_CHECKING:
    from pipeline.experiment import PlannedRun

TRY_S = 5.0  # of one try to open a cluster again: its address may be a new one
_STARTED = ("local", "jobqueue", "kubernetes")  # kinds whose workers we start
_GONE = (OSError, RuntimeError, AttributeError, ClosedClientError, CancelledError)


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster while its scheduler lives."""

    cluster: Cluster
    scheduler: str  # its id: another one after a restart, at the same address or not
    address: str

    @classmethod
    def at(cls, cluster: Cluster) -> Site:
        """The site of an open cluster."""
        return cls(cluster, _identity(cluster), cluster.address)

    def alive(self) -> bool:
        """Whether the scheduler is the same, and answers."""
        try:
            return _identity(self.cluster) == self.scheduler
        except _GONE:
            return False


def _identity(cluster: Cluster) -> str:
    return str(cluster.client.sync(_scheduler_id, cluster.client))


async def _scheduler_id(client: Any) -> str:
    asked = client.scheduler.identity(n_workers=0)
    answer = await asyncio.wait_for(asked, ANSWER_S)
    return str(answer["id"])


class Lender:
    """Lends the workers of a batch's cluster to its runs.

    The thread that opened the cluster calls ``open``, ``look``, ``want`` and ``shut``;
    the threads of the runs call ``lend``.
    """

    def __init__(self, config: ClusterConfig, stop: StopRequest) -> None:
        most = config.adapt[1] if config.adapt else config.workers
        started = config.kind in _STARTED
        self._limit_s = config.start_timeout_s
        self._leases = Leases(most if started else 0, self._limit_s)
        self._stop = stop
        self._site: Site | None = None
        self._over = False
        self._wanted = -1
        self._n_there = 0
        self._seen = 0.0  # when there were workers

    def open(self, cluster: Cluster) -> None:
        """Lend the workers of this cluster from now on.

        Raises
        ------
        ClusterLost — if its scheduler has gone in the meantime.
        """
        try:
            self._site = Site.at(cluster)
        except _GONE as err:
            raise ClusterLost(f"lost the scheduler: {err}") from err
        self._wanted, self._seen = -1, time.monotonic()
        self.look()

    def shut(self) -> None:
        """Lend nothing until another cluster is open."""
        self._site = None
        self._leases.update(())

    def end(self) -> None:
        """Let no run wait for workers any longer."""
        self._over = True

    def look(self) -> None:
        """See which workers there are.

        Raises
        ------
        ClusterLost — if the scheduler is gone, or was started anew.
        RuntimeError — if there have been no workers for ``start_timeout_s``.
        """
        if self._site is None:
            return
        try:
            names = list(self._site.cluster.workers().values())
        except RuntimeError as err:
            raise ClusterLost(str(err)) from err
        if not self._site.alive():
            raise ClusterLost("`cluster` must keep its scheduler; got another one.")
        now = time.monotonic()
        self._n_there = len(names)
        self._seen = now if names else self._seen
        self._leases.update(names)
        if now - self._seen > self._limit_s:
            raise RuntimeError(
                f"`cluster` must have workers; got none for {self._limit_s:g} s. Start "
                "some, then run the experiment again."
            )

    @property
    def n_lent(self) -> int:
        """Workers that are at work."""
        return self._leases.n_lent

    @property
    def n_free(self) -> int:
        """Workers that wait for a run."""
        return max(self._n_there - self.n_lent, 0)

    def want(self, n: int) -> None:
        """Ask an adaptive cluster for ``n`` workers."""
        if self._site is not None and n != self._wanted:
            self._site.cluster.want(n)
            self._wanted = n

    @contextmanager
    def lend(self, run: PlannedRun) -> Iterator[ClusterConfig]:
        """Wait for a run's workers, and lend them.

        Raises
        ------
        NoLease — if the batch ends before.
        ClusterLost — in place of what a run raised whose scheduler is gone.
        """
        names = self._leases.take(workers_needed(run.config), self._given_up)
        if not names:
            raise NoLease(f"the batch ended before {run.name} got its workers.")
        try:
            site = self._site
            if site is None:
                raise ClusterLost("`cluster` must keep its scheduler; got none.")
            try:
                yield lent(run.config, names, site.cluster.config, site.address)
            except _GONE as err:
                if site.alive():
                    raise
                raise ClusterLost(f"lost the scheduler: {err}") from err
        finally:
            self._leases.give_back(names)

    def _given_up(self) -> bool:
        return self._over or self._stop.event.is_set()


@contextmanager
def reopened(
    config: ClusterConfig, stop: StopRequest, device: str = "cpu"
) -> Iterator[Cluster]:
    """Open a cluster whose scheduler was lost, within ``start_timeout_s``.

    One that we do not start is tried for a few seconds at a time, and its scheduler
    file read anew with every try.

    Raises
    ------
    RuntimeError — if it is not there in time, or a stop was asked for.
    """
    brief = config.start_timeout_s
    if config.kind in ("address", "scheduler-file"):
        brief = min(TRY_S, brief)
    short = config.model_copy(update={"start_timeout_s": brief})
    deadline = time.monotonic() + config.start_timeout_s
    with ExitStack() as stack:
        while True:
            try:
                cluster = stack.enter_context(open_cluster(short, device))
                break
            except _GONE as err:  # it may go again while we talk to it
                late = time.monotonic() > deadline
                if late or stop.event.wait(0.5):
                    raise RuntimeError(str(err) or repr(err)) from err
        yield replace(cluster, config=config)
