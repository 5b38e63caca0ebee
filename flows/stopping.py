"""Ctrl-C, SIGTERM and a closed terminal stop a training run at a checkpoint.

A terminal signals every process of its group: Dask's workers would die of it before the
checkpoint is written. So its signals (SIGINT, and SIGHUP when it is closed) are blocked
in the main thread while a run lasts, and with it in every thread and process that is
started meanwhile; one thread of ours waits for them.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from types import FrameType

JOIN_S = 5.0
STOPPING = "stopping at the next checkpoint (press Ctrl-C again to abandon the run)"


@dataclass(slots=True)
class StopRequest:
    """``event`` is set when a signal arrived; ``signal_number`` says which."""

    event: threading.Event = field(default_factory=threading.Event)
    signal_number: int | None = None


_active: list[StopRequest] = []  # at most one: nested runs share it


def _ignore(_: str) -> None:
    return None


@contextmanager
def stop_on_signals(say: Callable[[str], None] = _ignore) -> Iterator[StopRequest]:
    """Yield a request that a first signal sets; a second one interrupts.

    Signals are SIGINT, SIGTERM, and SIGHUP unless it is ignored, as under nohup. A
    SIGHUP never interrupts: a terminal's end sends several.

    Inside another one it yields that one's request. Outside the main thread Python
    allows no handlers: the request is then never set by a signal. Handlers and signal
    mask are put back at the end.

    Parameters
    ----------
    say : callable — told once, in words, that a stop was asked for.
    """
    if _active:
        yield _active[0]
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int) -> None:
        request.signal_number = number
        request.event.set()
        with suppress(OSError):  # a terminal that was closed takes no words
            say(STOPPING)
        if number == signal.SIGHUP:
            _leave(terminals)

    def handle(number: int, frame: FrameType | None) -> None:
        if not request.event.is_set():
            ask(number)
        elif number != signal.SIGHUP:
            raise KeyboardInterrupt

    def hear(number: int) -> None:
        if not request.event.is_set():
            ask(number)  # here, as the main thread may be waiting in a lock
        elif number != signal.SIGHUP:
            _thread.interrupt_main(signal.SIGINT)

    terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]
    heard = {signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.add(signal.SIGHUP)

    _active.append(request)
    with ExitStack() as stack:
        stack.callback(_active.clear)
        for number in (*heard, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, handle))
        # multiprocessing starts its tracker with the first child, and then unblocks
        # SIGINT in the thread that did so: let it be done before.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        stack.enter_context(_on_each(heard, hear))
        yield request


def _leave(terminals: Iterable[int]) -> None:
    """Let what is still said go nowhere: to write to a closed terminal is an error."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in terminals:
        os.dup2(nothing, fd)
    os.close(nothing)


@contextmanager
def _on_each(heard: set[signal.Signals], hear: Callable[[int], None]) -> Iterator[None]:
    """Call ``hear``, in a thread of its own, for each of some signals, all blocked."""
    ended = threading.Event()

    def wait() -> None:
        while True:
            number = signal.sigwait(heard)
            if ended.is_set():
                return
            hear(number)

    thread = threading.Thread(target=wait, name="ctrl-c", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGINT)
        thread.join(JOIN_S)  # it ends at its signal; a daemon holds no process up
