"""Keeps the processes of ``ndcao up`` alive, and ends all of them together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

POLL_S = 0.25
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before a process is started again
STEADY_S = 60.0  # a process that lived this long starts with a fresh count
MAX_DEATHS = 6  # in a row before all is given up
GRACE_S = 20.0  # between asking a process to end and killing it

# A log file is read while it is written, and is not the terminal of a command.
LOGGING = {
    "PYTHONUNBUFFERED": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
}


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep alive.

    ``command`` : one of :func:`flows.tied.command` ends when this process is killed.
    ``grandchildren_first`` : what it started is asked to end before it is.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    grandchildren_first: bool = False


@dataclass(slots=True)
class _Running:
    program: Program
    process: subprocess.Popen[bytes]
    began: float
    deaths: int = 0
    start_at: float | None = None  # when to start it again; None = it runs
    orphans: list[psutil.Process] = field(default_factory=list)  # of those that died


@dataclass(slots=True)
class Supervisor:
    """Starts programs in order, restarts those that die, ends all in reverse order.

    Parameters
    ----------
    say : told in one sentence what happened to a process.
    changed : called after a process has been started.
    """

    say: Callable[[str], None]
    changed: Callable[[], None] = lambda: None
    _running: list[_Running] = field(default_factory=list)

    def start(self, program: Program) -> None:
        """Start a program; it is kept alive by :meth:`watch`."""
        process = _spawn(program, self._running)
        self._running.append(_Running(program, process, time.monotonic()))
        self.changed()

    def processes(self) -> list[tuple[str, int]]:
        """Name and process id of everything that runs now."""
        return [(r.program.name, r.process.pid) for r in self._running]

    def wait_until(
        self, ready: Callable[[], bool], name: str, limit_s: float, stop: Stop
    ) -> None:
        """Wait until a program that was started is ``ready``.

        Raises
        ------
        RuntimeError — if it dies, or is not ready in ``limit_s``; with its log's end.
        KeyboardInterrupt — if ``stop`` is set meanwhile.
        """
        found = next(r for r in self._running if r.program.name == name)
        deadline = time.monotonic() + limit_s
        while not ready():
            if stop.wait(POLL_S):
                raise KeyboardInterrupt
            code = found.process.poll()
            if code is not None or time.monotonic() > deadline:
                what = f"ended with {code}" if code is not None else "no answer"
                raise RuntimeError(
                    f"`{name}` must be ready within {limit_s:g} s; got {what}. "
                    f"{_last_words(found.program.log)}"
                )

    def watch(self, stop: Stop) -> None:
        """Restart what dies, until ``stop`` is set.

        Raises
        ------
        RuntimeError — if one dies MAX_DEATHS times in a row, each time soon.
        """
        while not stop.wait(POLL_S):
            for i, running in enumerate(self._running):
                self._revive(running, self._running[:i])

    def _revive(self, running: _Running, earlier: Sequence[_Running]) -> None:
        now = time.monotonic()
        program = running.program
        if running.start_at is None:
            code = running.process.poll()
            if code is None:
                return
            running.orphans += _session(running.process.pid)
            steady = now - running.began > STEADY_S
            running.deaths = 1 if steady else running.deaths + 1
            if running.deaths >= MAX_DEATHS:
                raise RuntimeError(
                    f"`{program.name}` must stay alive; it ended {running.deaths} "
                    f"times in a row. {_last_words(program.log)}"
                )
            pause = min(FIRST_PAUSE_S * 2 ** (running.deaths - 1), LONGEST_PAUSE_S)
            running.start_at = now + pause
            self.say(f"{program.name} {_ended(code)}: starting it again")
        elif now >= running.start_at:
            _let_go(running.process)
            running.process = _spawn(program, earlier)
            running.began, running.start_at = now, None
            self.changed()

    def stop(self) -> None:
        """End everything, the last started first; what does not go is killed.

        Also what was started by a process that died, and has outlived it.
        """
        for running in reversed(self._running):
            end_tree(running.process.pid, running.program.grandchildren_first)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(timeout=GRACE_S)
            _let_go(running.process)
            _ask(running.orphans)
            _see_off(running.orphans)
        self._running.clear()


class Stop(threading.Event):
    """Set when a signal asked for the end."""


def end_tree(pid: int, grandchildren_first: bool = False) -> None:
    """Ask a process and all below it to end; kill what is left after GRACE_S."""
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    below = _below(root, recursive=True)
    if grandchildren_first:
        _ask(_below(root, recursive=False))
        psutil.wait_procs(below, timeout=GRACE_S)
        late = [one for one in _below(root, recursive=True) if one not in below]
        _ask(late)  # a slot became free, and it started another one
        below += late
    _ask([root])
    _see_off([root, *below])


def _below(root: psutil.Process, *, recursive: bool) -> list[psutil.Process]:
    try:
        return root.children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def _session(leader: int) -> list[psutil.Process]:
    """Processes of the session that a process was started with, as they are now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


def _ask(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()


def _see_off(processes: Sequence[psutil.Process]) -> None:
    """Wait until all have gone; kill what is left after GRACE_S."""
    left = psutil.wait_procs(processes, timeout=GRACE_S)[1]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=GRACE_S)


def _spawn(program: Program, earlier: Sequence[_Running]) -> subprocess.Popen[bytes]:
    """Start a program; what was started ``earlier`` ends after it, if we are killed."""
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        return subprocess.Popen(
            list(program.command),
            env={**os.environ, **LOGGING, **program.environment},
            stdin=subprocess.PIPE,  # closed by the kernel when we die: see `tied`
            pass_fds=[_tie(running.process).fileno() for running in earlier],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we end it in our order
        )


def _tie(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def _let_go(process: subprocess.Popen[bytes]) -> None:
    _tie(process).close()


def _ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with {code}"


def _last_words(log: Path, lines: int = 8) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as err:
        return f"Its log cannot be read: {err}."
    tail = "\n".join(text.splitlines()[-lines:])
    return f"Its log, {log}, ends with:\n{tail}"
