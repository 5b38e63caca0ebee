"""The parts of ``ndcao up``: how each is started, and when it is ready."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import up_state
from flows.deployments import HEARTBEAT_S, POOL
from flows.environment import keep_prefect_local
from flows.prefect_server import HOST
from flows.proxies import is_ours, leave_out_socks
from flows.servers import answers
from flows.supervisor import Program, Stop, Supervisor
from flows.tied import command

# In memory, as by default, a server that starts again knows no slots of runs under way,
# and Prefect ends these when they renew theirs.
SLOTS = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    )
}
PAGES = "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin"
READY_S = 120.0  # limit for each process's start
QUERY_S = 2  # between two looks of the Prefect worker for runs that are due

Say = Callable[[str], None]


@dataclass(slots=True)
class Parts:
    """Starts each part, and waits until it answers."""

    supervisor: Supervisor
    logs: Path
    stop: Stop
    say: Say

    def server(self, port: int) -> dict[str, str]:
        """Use the configured Prefect API, or start a server."""
        keep_prefect_local()
        from prefect import get_client
        from prefect.settings import get_current_settings

        settings = get_current_settings()
        if not settings.api.url or is_ours(str(settings.api.url)):
            leave_out_socks()
        if settings.api.url:
            url = str(settings.api.url)
            with get_client(sync_client=True) as client:  # has the keys, certificates
                error = client.api_healthcheck()
            if error is not None:
                raise RuntimeError(
                    f"`PREFECT_API_URL` must name a server that runs; got {error!r} "
                    f"from {url}. Start it, or unset it."
                )
            return {"api_url": url, "ui_url": str(settings.ui_url or url)}
        port = _free_port(port, "--port")
        root = f"http://{HOST}:{port}"
        self._start(
            "prefect-server",
            command("flows.prefect_server", "--port", str(port)),
            SLOTS,
            ready=lambda: answers(f"{root}/api/health"),
        )
        return {"api_url": f"{root}/api", "ui_url": root}

    def dask(self, dashboard_port: int, workers: int, gpus: bool) -> dict[str, str]:
        """Start a scheduler, and its workers."""
        file = up_state.folder() / "scheduler.json"
        file.unlink(missing_ok=True)
        port = _free_port(0, "")  # kept over restarts, so that clients come back
        words = ["--host", HOST, "--port", str(port)]
        shown_at = _free_port(dashboard_port, "")
        words += ["--dashboard-address", f"{HOST}:{shown_at}"]
        self._start(
            "dask-scheduler",
            command("dask", "scheduler", *words, "--scheduler-file", str(file)),
            {**dask_environment(), **dashboard_environment(shown_at)},
            ready=lambda: _read_scheduler(file) is not None,
        )
        words = ["--host", HOST, "--nthreads", "1", "--scheduler-file", str(file)]
        words += ["--dashboard-address", f"{HOST}:0"]  # of each worker
        words += ["--local-directory", str(up_state.folder() / "dask")]
        for name, more, environment in _worker_sets(workers, gpus):
            self._start(
                name,
                command("dask", "worker", *words, *more, "--name", name),
                {**dask_environment(), **environment},
            )
        services = (_read_scheduler(file) or {}).get("services", {})
        return {
            "scheduler_file": str(file),
            "dashboard": f"http://{HOST}:{services.get('dashboard')}/status",
        }

    def environment(self, state: Mapping[str, Any]) -> dict[str, str]:
        """What flow runs find in their environment."""
        return {
            "NDCAO_HOME": state["home"],
            "NDCAO_SCHEDULER_FILE": state["scheduler_file"],
        }

    def worker(self, state: Mapping[str, Any]) -> None:
        """Start the Prefect worker that runs flows of the work pool."""
        words = ["worker", "start", "--pool", POOL, "--type", "process"]
        words += ["--name", "ndcao-up"]
        self.supervisor.start(
            Program(
                "prefect-worker",
                command("prefect", *words, children_first=True),
                {
                    **self.environment(state),
                    "PREFECT_API_URL": state["api_url"],
                    "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_S),
                    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
                },
                self.logs / "prefect-worker.log",
                grandchildren_first=True,
            )
        )

    def _start(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        ready: Callable[[], bool] | None = None,
    ) -> None:
        self.say(f"starting {name}")
        program = Program(name, command, environment, self.logs / f"{name}.log")
        self.supervisor.start(program)
        if ready is not None:
            self.supervisor.wait_until(ready, name, READY_S, self.stop)


def check_gpus() -> None:
    """Make sure that there is a GPU.

    Raises
    ------
    ValueError — if there is none.
    """
    from pipeline.cluster import visible_gpus

    if not visible_gpus():
        raise ValueError(
            "`--gpus` must find a GPU; torch sees none here. Leave it out, or install "
            "a CUDA build of torch on a machine with a GPU."
        )


def dask_environment() -> dict[str, str]:
    """Our Dask settings as environment variables, for processes of their own."""
    from pipeline.cluster import SETTINGS

    return {_variable(key): str(value) for key, value in SETTINGS.items()}


def dashboard_environment(port: int) -> dict[str, str]:
    """Dask's setting for a dashboard that pages of other origins cannot read."""
    pages = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
    return {_variable(PAGES): str(pages)}


def _variable(setting: str) -> str:
    return "DASK_" + setting.upper().replace(".", "__").replace("-", "_")


def _worker_sets(
    workers: int, gpus: bool
) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    if not gpus:
        yield "dask-worker", ["--nworkers", str(workers)], {}
        return
    from pipeline.cluster import visible_gpus
    from pipeline.device import CUBLAS

    for i, gpu in enumerate(visible_gpus()):
        own = {"CUDA_VISIBLE_DEVICES": gpu, **CUBLAS}
        yield f"dask-worker-gpu{i}", ["--resources", "GPU=1"], own


def _read_scheduler(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found


def _free_port(wanted: int, flag: str) -> int:
    """``wanted`` if nobody listens there; for 0, or without a flag, another if so."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as err:
            if flag:
                raise ValueError(
                    f"`{flag}` must be free; got {wanted}: {err.strerror}. Pass "
                    f"{flag} 0 for any free one, or set PREFECT_API_URL if a Prefect "
                    "server runs there."
                ) from err
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def default_workers() -> int:
    """Dask workers by default: one a core this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )
