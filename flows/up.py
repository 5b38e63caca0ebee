"""``ndcao up``: a Prefect server and worker and a Dask cluster, in one terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from flows import up_state
from flows.deployments import deploy
from flows.environment import home
from flows.supervisor import Stop, Supervisor, end_tree
from flows.up_parts import Parts, Say, check_gpus


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the parts of a running ``ndcao up`` are."""

    api_url: str
    ui_url: str
    dashboard: str
    scheduler_file: str
    home: str
    logs: str


@contextmanager
def up(
    *,
    port: int,
    dask_port: int,
    workers: int,
    gpus: bool,
    with_deployments: bool,
    say: Say,
) -> Iterator[tuple[Addresses, Supervisor, Stop]]:
    """Start everything, yield addresses and supervisor, end everything.

    The server is started only if no Prefect API is configured. What an earlier ``up``
    of this home left behind, if it was killed, is ended first.

    Parameters
    ----------
    port : of the Prefect server; 0 = a free one.
    dask_port : of the Dask dashboard; 0 = a free one.
    workers : Dask worker processes; with ``gpus`` one a GPU instead.
    with_deployments : apply ``prefect.yaml`` too.

    Raises
    ------
    RuntimeError — if another ``up`` runs in this home, or a part does not start.
    ValueError — if a port is taken, or there is no GPU.
    KeyboardInterrupt — if a signal asks for the end before all runs.
    """
    if gpus:
        check_gpus()
    folder = up_state.folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "up.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise RuntimeError(
            f"`ndcao up` must run once in a home; one runs in {home().resolve()}. "
            "Stop it, or set NDCAO_HOME to another folder."
        ) from err
    with ExitStack() as stack:
        stack.callback(lock.release)
        for pid in up_state.leftovers():
            say(f"ending process {pid}, left by an `ndcao up` that was killed")
            end_tree(pid)
        state: dict[str, Any] = {}
        supervisor = Supervisor(
            say, lambda: up_state.write(state, supervisor.processes())
        )
        stop = stack.enter_context(_stop_on_signal(say))
        stack.callback(up_state.state_file().unlink, missing_ok=True)
        stack.callback(supervisor.stop)
        parts = Parts(supervisor, folder / "logs", stop, say)
        state |= parts.server(port)
        state |= parts.dask(dask_port, workers, gpus)
        state |= {"home": str(home().resolve()), "logs": str(folder / "logs")}
        addresses = Addresses(**state)
        if with_deployments:
            say("applying the deployments")
            with _ctrl_c_explains_errors(stop):
                deploy(addresses.api_url, parts.environment(state))
        parts.worker(state)
        state["ready"] = True
        up_state.write(state, supervisor.processes())
        yield addresses, supervisor, stop


@contextmanager
def _ctrl_c_explains_errors(stop: Stop) -> Iterator[None]:
    """End with KeyboardInterrupt once ``stop`` is set: children hear Ctrl-C, too."""
    try:
        yield
    except RuntimeError:
        if not stop.is_set():
            raise
    if stop.is_set():
        raise KeyboardInterrupt


@contextmanager
def _stop_on_signal(say: Say) -> Iterator[Stop]:
    stop = Stop()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            return
        stop.set()
        with suppress(OSError):  # a terminal that was closed takes no words
            say("stopping; runs that train leave checkpoints")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
