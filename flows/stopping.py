"""Ctrl-C and SIGTERM ask a training run to stop at a checkpoint, not to die.

A terminal sends Ctrl-C to every process of its group: Dask's workers and Prefect's
temporary server would die of it before the checkpoint is written. So SIGINT is blocked
in the main thread while a run lasts, and with it in every thread and process that is
started meanwhile; one thread of ours waits for it.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from types import FrameType

JOIN_S = 5.0


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
    """Yield a request that the first SIGINT or SIGTERM sets; a second one interrupts.

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
        say("stopping at the next checkpoint (press Ctrl-C again to abandon the run)")

    def handle(number: int, frame: FrameType | None) -> None:
        if request.event.is_set():
            raise KeyboardInterrupt
        ask(number)

    def hear() -> None:
        if request.event.is_set():
            _thread.interrupt_main(signal.SIGINT)
        else:
            ask(signal.SIGINT)  # here, as the main thread may be waiting in a lock

    _active.append(request)
    with ExitStack() as stack:
        stack.callback(_active.clear)
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, handle))
        # multiprocessing starts its tracker with the first child, and then unblocks
        # SIGINT in the thread that did so: let it be done before.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        stack.enter_context(_on_each_interrupt(hear))
        yield request


@contextmanager
def _on_each_interrupt(hear: Callable[[], None]) -> Iterator[None]:
    """Call ``hear``, in a thread of its own, for every SIGINT that is blocked."""
    ended = threading.Event()

    def wait() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            if ended.is_set():
                return
            hear()

    thread = threading.Thread(target=wait, name="ctrl-c", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGINT)
        thread.join(JOIN_S)  # it ends at its signal; a daemon holds no process up
