"""Processes that are killed at the k-th thing they do to files.

A child is forked from a warm process, so that a case takes milliseconds, and before
any thread of its own is there. Python tells every opening, renaming, making and
removing of a file before it does it; ``os.fsync`` is told here. A limit of a file's
size kills in the middle of a write.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from tests.faults.outcomes import LIMIT_S

_CHANGES = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"),
    *("os.truncate", "os.chmod", "ctypes.dlopen"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killed(Exception):
    """A child was killed."""


class Lost(Exception):
    """A child gave no answer in time."""


class Failed(Exception):
    """A child ended with an error, which is the message."""


def in_child(work: Callable[[], Any], prepare: Callable[[], None] | None = None) -> Any:
    """Return what ``work`` returns in a forked process, as JSON keeps it.

    Parameters
    ----------
    prepare : called in the child before, such as to have it killed.

    Raises
    ------
    Killed, Lost, Failed — as the child was.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _work(work, prepare, writing)
    os.close(writing)
    try:
        said = _read(reading, pid)
    finally:
        os.close(reading)
        status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        raise Killed
    answer = json.loads(said)
    if os.waitstatus_to_exitcode(status):
        raise Failed(answer)
    return answer


def n_events(work: Callable[[], Any]) -> int:
    """Return how many things ``work`` does to files."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1

    def counted() -> int:
        work()
        return seen

    return int(in_child(counted, lambda: _on_events(count)))


def at_event(k: int) -> Callable[[], None]:
    """Kill the process before the ``k``-th (from 0) thing that it does to files."""
    left = k

    def count() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    return lambda: _on_events(count)


def _on_events(count: Callable[[], None]) -> None:
    def told(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and arguments[2] & _WRITING):
            count()

    fsync = os.fsync

    def told_fsync(descriptor: int) -> None:
        count()
        fsync(descriptor)

    os.fsync = told_fsync
    sys.addaudithook(told)


def at_size(n_bytes: int) -> Callable[[], None]:
    """Kill the process when it writes more than ``n_bytes`` into one file."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return prepare


def _work(
    work: Callable[[], Any], prepare: Callable[[], None] | None, writing: int
) -> None:
    code = 1
    try:
        if prepare is not None:
            prepare()
        answer = work()
        code = 0
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    try:
        os.write(writing, json.dumps(answer).encode())
    finally:
        os._exit(code)


def _read(reading: int, pid: int) -> bytes:
    said = b""
    while True:
        if not select.select([reading], [], [], LIMIT_S)[0]:
            os.kill(pid, signal.SIGKILL)
            raise Lost
        part = os.read(reading, 65536)
        if not part:
            return said
        said += part
