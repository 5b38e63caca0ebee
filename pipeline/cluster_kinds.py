"""Starts, or connects to, each kind of cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client as DaskClient
from distributed import LocalCluster, Nanny, Scheduler, Security, SpecCluster

from pipeline.cluster_adapt import Bounds, OperatorBounds, adapt
from pipeline.cluster_config import ClusterConfig
from pipeline.cluster_queues import start_jobs, start_pods
from pipeline.device import CUBLAS
from pipeline.greeting import greeted
from pipeline.main_guard import check_guarded
from pipeline.places import given_path

HERE = "127.0.0.1"
CLOSE_S = 5.0  # for a client that could not connect
OURS = ("local", "cuda")  # kinds whose processes are copies of this one


class Client(DaskClient):
    """Dask's, which closes itself if it cannot connect.

    Else it would do so at the end of this process, and wait there for two minutes.
    """

    def __init__(self, *words: Any, **named: Any) -> None:
        try:
            super().__init__(*words, **named)  # type: ignore[no-untyped-call]
        except BaseException:
            self.close(timeout=CLOSE_S)  # type: ignore[no-untyped-call]
            raise


@contextmanager
def started(
    config: ClusterConfig, device: str
) -> Iterator[tuple[Client, Bounds | None]]:
    """Yield a client of the cluster, and what an adaptive one is asked by.

    Closes what it has started; a cluster that was there before is left running.
    """
    with _without_tracebacks():
        yield from _started(config, device)


def _started(
    config: ClusterConfig, device: str
) -> Iterator[tuple[Client, Bounds | None]]:
    if config.kind in ("address", "scheduler-file"):
        with _connect(config) as client:
            yield client, None
        return
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(_start(config, device))
        bounds: Bounds | None
        if config.kind == "kubernetes" and config.adapt:
            bounds = OperatorBounds(cluster, *config.adapt)
        else:
            bounds = adapt(cluster, config.adapt)
        connect = partial(
            Client, cluster, timeout=config.start_timeout_s, set_as_default=False
        )
        client = stack.enter_context(greeted(connect))
        yield client, bounds


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep Dask from logging those of a connection that is lost: we raise an error."""

    def says_more(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, asyncio.CancelledError | OSError)

    log = logging.getLogger("distributed.client")
    log.addFilter(says_more)
    try:
        yield
    finally:
        log.removeFilter(says_more)


def _start(config: ClusterConfig, device: str) -> Any:
    security = security_of(config)
    if config.kind == "kubernetes":
        return start_pods(config)
    if config.kind == "jobqueue":
        cluster = start_jobs(config, security)
        if not config.adapt:
            cluster.scale(config.workers)
        return cluster
    check_guarded()
    if config.kind == "cuda" or device == "cuda":
        return _local_cuda(config, security)
    return LocalCluster(
        n_workers=config.adapt[0] if config.adapt else config.workers,
        threads_per_worker=1,
        processes=True,
        host=HERE,
        dashboard_address=f"{HERE}:0",
        resources={config.resource: 1} if config.resource else None,
        security=security,
        protocol=None if security is None else "tls://",
    )


def security_of(config: ClusterConfig) -> Security | None:
    """Return the certificates to show; None = as Dask itself is configured.

    Raises
    ------
    RuntimeError — if a file is missing, or is no certificate or key.
    """
    tls = config.tls
    if tls is None:
        return None
    files = {}
    for name, text in tls.model_dump().items():
        path = Path(text).expanduser().resolve()
        if not path.is_file():
            raise RuntimeError(
                f"`cluster.tls.{name}` must be a file; got {path}. Correct the path."
            )
        files[name] = str(path)
    cert, key = files["cert"], files["key"]
    security = Security(
        require_encryption=True,
        tls_ca_file=files["ca_file"],
        **{f"tls_{role}_cert": cert for role in ("client", "scheduler", "worker")},
        **{f"tls_{role}_key": key for role in ("client", "scheduler", "worker")},
    )
    try:
        security.get_connection_args("client")
    except ssl.SSLError as err:
        raise RuntimeError(
            "`cluster.tls` must be PEM files of a certificate authority, a certificate "
            f"and its key; got {cert}: {err}. Make them again."
        ) from err
    return security


def visible_gpus() -> list[str]:
    """Names of this process's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if listed is not None:
        return [name for name in listed.split(",") if name][:count]
    return [str(i) for i in range(count)]


def _local_cuda(config: ClusterConfig, security: Security | None) -> Any:
    if config.adapt:
        raise RuntimeError(
            "`cluster.adapt` must be left out with GPUs, each of which has one worker; "
            f"got {list(config.adapt)}. Set cluster.workers."
        )
    gpus = visible_gpus()
    if not gpus:
        raise RuntimeError(
            "`device` must be available; got cuda, and torch sees no GPU here. Use "
            "--device cpu, or install a CUDA build of torch on a machine with a GPU."
        )
    gpus = gpus[: config.workers]
    offered = {name: 1 for name in ("GPU", config.resource) if name}
    protocol = None if security is None else "tls://"
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        return _one_nanny_per_gpu(gpus, offered, security, protocol)
    return LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=",".join(gpus),
        threads_per_worker=1,
        resources=offered,
        host=HERE,
        dashboard_address=f"{HERE}:0",
        security=security,
        protocol=protocol,
    )


def _one_nanny_per_gpu(
    gpus: list[str],
    offered: dict[str, int],
    security: Security | None,
    protocol: str | None,
) -> Any:
    workers = {
        i: {
            "cls": Nanny,
            "options": {
                "host": HERE,
                "dashboard": False,
                "nthreads": 1,
                "env": {"CUDA_VISIBLE_DEVICES": gpu, **CUBLAS},
                "memory_limit": 1.0 / len(gpus),  # of this machine's
                "resources": offered,
                "security": security,
                "protocol": protocol,
            },
        }
        for i, gpu in enumerate(gpus)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": HERE,
            "dashboard_address": f"{HERE}:0",
            "security": security,
            "protocol": protocol,
        },
    }
    return SpecCluster(
        workers=workers, scheduler=scheduler, name="ndcao", security=security
    )


def _connect(config: ClusterConfig) -> Client:
    where = config.address
    if config.kind == "scheduler-file":  # Dask would wait for a file that goes for ever
        file = config.scheduler_file or ""
        where = _address_in(given_path(file, "cluster.scheduler_file"))
    security = security_of(config)
    connect = partial(
        Client,
        where,
        timeout=config.start_timeout_s,
        set_as_default=False,
        security=security,
    )
    try:
        return greeted(connect)
    except (OSError, TimeoutError) as err:
        raise RuntimeError(
            f"`cluster` must be reachable within {config.start_timeout_s:g} s; got no "
            f"answer from {where}. Check the address, or start `dask scheduler` there."
        ) from err
    except ValueError as err:  # an unknown scheme, no port
        raise ValueError(
            f"`cluster.address` must be one such as tcp://host:8786; got {where!r}: "
            f"{err}. Correct it."
        ) from err
    except (TypeError, RuntimeError) as err:  # how Dask says that TLS does not fit
        raise RuntimeError(
            f"`cluster.tls` must fit the scheduler at {where}; got {err}. Set "
            "cluster.tls for an address that starts with tls://, and only then."
        ) from err


def _address_in(path: Path) -> str:
    """Address of the scheduler that a scheduler file names."""
    if not path.is_file():
        raise RuntimeError(
            f"`cluster.scheduler_file` must exist; got {path}. Start one with "
            f"`dask scheduler --scheduler-file {path}`."
        )
    try:
        address = json.loads(path.read_text(encoding="utf-8"))["address"]
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise RuntimeError(
            f"`cluster.scheduler_file` must name a scheduler; got {path}: {err}. "
            f"Start one with `dask scheduler --scheduler-file {path}`."
        ) from err
    return str(address)
