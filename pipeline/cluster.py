"""An open Dask cluster, whatever its kind: its workers, and who may use them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import dask
from distributed import Client, Variable

from pipeline.cluster_adapt import Bounds
from pipeline.cluster_admission import Admission
from pipeline.cluster_config import ClusterConfig
from pipeline.cluster_kinds import OURS, started
from pipeline.cluster_kinds import visible_gpus as visible_gpus
from pipeline.mailbox import MailboxPlugin
from pipeline.processors import Processor, processor

logger = logging.getLogger(__name__)

SETTINGS = {
    "distributed.scheduler.allowed-failures": 50,  # deaths that are not a task's fault
    "distributed.admin.large-graph-warning-threshold": "200MB",
    "distributed.scheduler.work-stealing": False,  # tasks stay by their states
    "distributed.worker.profile.enabled": False,  # it samples stacks every 10 ms
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
}
POLL_S = 0.1
LOOK_S = 1.0  # between two questions which workers there are
ANSWER_S = 60.0  # limit for a scheduler's or a worker's answer to a short question


@dataclass(frozen=True, slots=True)
class Cluster:
    """An open Dask cluster: its client, and how many workers a run may use."""

    client: Client
    config: ClusterConfig
    bounds: Bounds | None = None  # of an adaptive cluster
    admission: Admission | None = None  # of one whose processes are not copies of ours
    # by address, of the workers that have computed
    processors: dict[str, Processor] = field(default_factory=dict)

    @property
    def dashboard(self) -> str | None:
        """Address of the Dask dashboard, if it runs."""
        return self.client.dashboard_link if self.config.dashboard else None

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        scheduler: Any = self.client.scheduler
        return str(scheduler.address)

    def workers(self) -> dict[str, str]:
        """Address → name of the workers a run may use now, in order of name.

        Those that ``config.only`` names; any other while none of these is there, so
        that a run goes on while workers come and go.
        """
        info = self._everyone()
        resource, only = self.config.resource, self.config.only
        usable = {
            address: str(worker.get("name", address))
            for address, worker in info.items()
            if resource is None or worker.get("resources", {}).get(resource, 0) >= 1
        }
        named = {a: name for a, name in usable.items() if name in only}
        usable = named or usable
        if self.admission is not None:
            usable = self.admission.usable(usable)
        ordered = sorted(usable.items(), key=lambda item: (len(item[1]), item[1]))
        return dict(ordered)

    def _everyone(self) -> dict[str, Any]:
        info: dict[str, Any] = self.client.sync(self._identity)
        if "workers" not in info:
            raise RuntimeError(
                "`cluster` must keep its scheduler; got no connection to it. "
                "Start one, then resume the run."
            )
        workers: dict[str, Any] = info["workers"]
        return workers

    async def _identity(self) -> dict[str, Any]:
        """Ask the scheduler itself.

        ``Client.scheduler_info`` hands out an attribute that the client refreshes, with
        no workers in it, every two seconds: now and then they would all seem gone.
        """
        if self.client.status not in ("running", "connecting"):
            return {}
        try:
            scheduler: Any = self.client.scheduler
            asked = scheduler.identity(n_workers=-1)
            identity: dict[str, Any] = await asyncio.wait_for(asked, ANSWER_S)
            return identity
        except (OSError, AttributeError):  # no connection, or no answer in time
            return {}

    def want(self, n: int) -> None:
        """Ask for at least ``n`` workers; a cluster of fixed size ignores it.

        An adaptive one keeps what Dask itself asks for if that is more, and stays
        within its bounds. ``want(0)`` gives the workers back.
        """
        if self.bounds is not None:
            self.bounds.want(n)

    def bring(self, names: Iterable[str]) -> None:
        """Send the user's own packages to the workers that cannot import them.

        Raises
        ------
        RuntimeError — if a worker has another copy of one.
        """
        if self.admission is not None:
            self.admission.bring(names)

    def look_at(self, addresses: Iterable[str]) -> None:
        """Learn what workers that have computed do so with; each is asked once."""
        new = [a for a in addresses if a not in self.processors]
        if new and self.client.status == "running":
            self.processors.update(self.client.sync(self._processors, new))

    async def _processors(self, addresses: list[str]) -> dict[str, Processor]:
        asked: Any = self.client.run(processor, workers=addresses, on_error="ignore")
        try:
            return dict(await asyncio.wait_for(asked, ANSWER_S))
        except OSError as err:  # it died, or hangs: the run goes on without it
            logger.warning("a worker did not say what it computes with: %r", err)
            return {}

    def forget(self, variable: str, function: Any = None) -> None:
        """Delete a run's Variable, and call ``function(variable)`` on every worker.

        A cluster that is gone has nothing to forget.
        """
        if self.client.status != "running":
            return
        try:
            Variable(variable, client=self.client).delete()
            if function is not None:
                self.client.sync(self._call, function, variable)
        except OSError as err:
            logger.warning("could not delete %s from the cluster: %r", variable, err)

    async def _call(self, function: Any, variable: str) -> None:
        asked: Any = self.client.run(function, variable, on_error="ignore")
        await asyncio.wait_for(asked, ANSWER_S)

    def wait_for_workers(self, n: int = 1) -> list[str]:
        """Addresses of the workers a run may use, ``cluster.workers`` at most.

        Waits up to ``start_timeout_s`` for ``n`` of them.

        Raises
        ------
        RuntimeError — if fewer have come, or none has the wanted resource.
        """
        deadline = time.monotonic() + self.config.start_timeout_s
        while True:
            found = list(self.workers())
            if len(found) >= n:
                return found[: self.config.workers]
            everyone = self._everyone()
            if self.config.resource and len(everyone) >= n:
                has = sorted(
                    {r for w in everyone.values() for r in w.get("resources", {})}
                )
                raise RuntimeError(
                    f"`cluster.resource` must be offered by at least {n} worker(s); "
                    f"got {len(found)} with {self.config.resource!r}, and workers that "
                    f"offer {', '.join(has) or 'none'}. Start workers with "
                    f'--resources "{self.config.resource}=1".'
                )
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"`cluster` must have at least {n} worker(s); got {len(found)} "
                    f"after {self.config.start_timeout_s:g} s. Start workers, or raise "
                    "cluster.start_timeout_s."
                )
            time.sleep(POLL_S)


class Roster:
    """The workers of one run as tasks are placed on them; asked for once a second."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._names: dict[str, str] = {}
        self._looked = 0.0

    def names(self) -> dict[str, str]:
        """Address → name of the workers that were there a moment ago."""
        if time.monotonic() - self._looked > LOOK_S or not self._names:
            self._names = self._cluster.workers()
            self._looked = time.monotonic()
        return self._names

    def place(self, slot: int) -> dict[str, Any]:
        """Where a task prefers to run; another worker takes it if that one is gone."""
        config = self._cluster.config
        addresses = list(self.names()) or self._cluster.wait_for_workers()
        mine = addresses[: config.workers]
        return {
            "workers": [mine[slot % len(mine)]],
            "allow_other_workers": True,
            "resources": {config.resource: 1} if config.resource else None,
            "pure": False,
            "fifo_timeout": "0ms",
        }


@contextmanager
def open_cluster(config: ClusterConfig, device: str = "cpu") -> Iterator[Cluster]:
    """Open (and close, if it was ours) the Dask cluster that ``config`` describes.

    Workers that we start have one thread each, and one GPU each where ``device`` is
    cuda. An address or a scheduler file connects to a running cluster and leaves it
    running. There, versions are compared first, and our packages sent to workers that
    have none.

    Raises
    ------
    RuntimeError — if the scheduler cannot be reached in ``start_timeout_s``, a package
        or device is missing, no worker comes, or one has other versions.
    ValueError — if ``cluster.options`` are not what the kind of cluster needs.
    """
    with (
        dask.config.set(SETTINGS),
        started(config, device) as (client, bounds),
        client.as_current(),
    ):
        yield _ready(client, config, bounds)


def _ready(client: Client, config: ClusterConfig, bounds: Bounds | None) -> Cluster:
    if config.kind in OURS:
        client.register_plugin(MailboxPlugin())
        cluster = Cluster(client, config, bounds)
        cluster.wait_for_workers()
        return cluster
    found = Cluster(client, config, bounds)
    found.wait_for_workers()
    admission = Admission(client, config.start_timeout_s)
    admission.open(found.workers())
    return replace(found, admission=admission)
