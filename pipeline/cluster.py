"""The only file that knows local, address, scheduler file and CUDA clusters."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from distributed import (
    Client,
    LocalCluster,
    Nanny,
    Scheduler,
    SpecCluster,
    Variable,
)

from pipeline.config import ClusterConfig
from pipeline.mailbox import MailboxPlugin

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


@dataclass(frozen=True, slots=True)
class Cluster:
    """An open Dask cluster: its client, and how many workers a run may use."""

    client: Client
    config: ClusterConfig

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
        """Address → name of the workers a run may use now, in order of name."""
        info = self._everyone()
        resource, only = self.config.resource, self.config.only
        usable = {
            address: str(worker.get("name", address))
            for address, worker in info.items()
            if resource is None or worker.get("resources", {}).get(resource, 0) >= 1
        }
        if only:
            usable = {a: name for a, name in usable.items() if name in only}
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
            identity: dict[str, Any] = await scheduler.identity(n_workers=-1)
            return identity
        except (OSError, AttributeError):  # the connection is gone
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
                self.client.run(function, variable, on_error="ignore")
        except (OSError, TimeoutError) as err:
            logger.warning("could not delete %s from the cluster: %s", variable, err)

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

    Local clusters run one single-threaded worker process per worker, one per GPU where
    ``device`` is cuda, with ``CUDA_VISIBLE_DEVICES`` set for each. An address or a
    scheduler file connects to a running cluster and leaves it running.

    Raises
    ------
    RuntimeError — if the scheduler cannot be reached in ``start_timeout_s``, the
        device is missing, or no worker comes.
    """
    with dask.config.set(SETTINGS):
        if config.kind == "local":
            with (
                _local(config, device) as cluster,
                Client(cluster, set_as_default=False) as client,
                client.as_current(),
            ):
                yield _ready(client, config)
        else:
            with _connect(config) as client, client.as_current():
                yield _ready(client, config)


def _ready(client: Client, config: ClusterConfig) -> Cluster:
    client.register_plugin(MailboxPlugin())
    cluster = Cluster(client, config)
    cluster.wait_for_workers()
    return cluster


def _local(config: ClusterConfig, device: str) -> Any:
    dashboard = "127.0.0.1:0"
    if device == "cuda":
        return _local_cuda(config, dashboard)
    resources = {config.resource: 1} if config.resource else None
    return LocalCluster(
        n_workers=config.workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=dashboard,
        resources=resources,
    )


def visible_gpus() -> list[str]:
    """Names of this process's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if listed is not None:
        return [name for name in listed.split(",") if name][:count]
    return [str(i) for i in range(count)]


def _local_cuda(config: ClusterConfig, dashboard: str | None) -> Any:
    gpus = visible_gpus()
    if not gpus:
        raise RuntimeError(
            "`device` must be available; got cuda, and torch sees no GPU here. Use "
            "--device cpu, or install a CUDA build of torch on a machine with a GPU."
        )
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        workers = {
            i: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "env": {
                        "CUDA_VISIBLE_DEVICES": gpu,
                        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                    },
                    "resources": {"GPU": 1},
                },
            }
            for i, gpu in enumerate(gpus[: config.workers])
        }
        scheduler = {
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "dashboard_address": dashboard},
        }
        return SpecCluster(workers=workers, scheduler=scheduler, name="ndcao")
    return LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=",".join(gpus[: config.workers]),
        threads_per_worker=1,
        dashboard_address=dashboard,
    )


def _connect(config: ClusterConfig) -> Client:
    target: dict[str, Any] = {"address": config.address}
    if config.kind == "scheduler-file":
        path = Path(config.scheduler_file or "")
        if not path.is_file():
            raise RuntimeError(
                f"`cluster.scheduler_file` must exist; got {path}. Start one with "
                f"`dask scheduler --scheduler-file {path}`."
            )
        try:
            json.loads(path.read_text(encoding="utf-8"))["address"]
        except (OSError, ValueError, LookupError, TypeError) as err:
            raise RuntimeError(
                f"`cluster.scheduler_file` must name a scheduler; got {path}: {err}. "
                f"Start one with `dask scheduler --scheduler-file {path}`."
            ) from err
        target = {"scheduler_file": str(path)}
    try:
        return Client(timeout=config.start_timeout_s, set_as_default=False, **target)
    except (OSError, TimeoutError) as err:
        where = config.address or config.scheduler_file
        raise RuntimeError(
            f"`cluster` must be reachable within {config.start_timeout_s:g} s; got no "
            f"answer from {where}. Check the address, or start `dask scheduler` there."
        ) from err
