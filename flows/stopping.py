"""Ctrl-C and SIGTERM ask a training run to stop at a checkpoint, not to die."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """``event`` is set when a signal arrived; ``signal_number`` says which."""

    event: threading.Event = field(default_factory=threading.Event)
    signal_number: int | None = None


def _ignore(_: str) -> None:
    return None


@contextmanager
def stop_on_signals(say: Callable[[str], None] = _ignore) -> Iterator[StopRequest]:
    """Yield a request that the first SIGINT or SIGTERM sets; a second one interrupts.

    Outside the main thread Python allows no handlers: the request is then never set by
    a signal. The handlers that were there before are put back at the end.

    Parameters
    ----------
    say : callable — told once, in words, that a stop was asked for.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.event.is_set():
            raise KeyboardInterrupt
        request.signal_number = number
        request.event.set()
        say("stopping at the next checkpoint (press Ctrl-C again to abandon the run)")

    previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
