"""Events of single block updates, sent by workers while a run goes on.

A future runs many updates: its bar on Dask's dashboard does not tell them apart. Each
worker therefore logs what it has done under the topic ``ndcao-updates``, a few times a
second at most, however short the updates are::

    for _, event in client.get_events("ndcao-updates"):
        event["run"], event["worker"], event["n_updates"]
        event["updates"]  # (block, step, start, end), the newest MOST of them

``start`` and ``end`` are seconds since the epoch; a replica has its number in place of
a block's. Dask's scheduler keeps the newest 1,000 events of a topic. The whole record
is in the run's store.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

TOPIC = "ndcao-updates"
EVERY_S = 0.25  # between two events of one worker
MOST = 64  # updates that one event lists

Update = tuple[int, int, float, float]  # block, step, start, end


class Timeline:
    """What one worker process has updated and not logged yet, by run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[int, deque[Update]]] = {}

    def add(self, run: str, update: Update) -> bool:
        """Keep an update; whether it is the first since ``take``."""
        with self._lock:
            first = not self._runs
            count, newest = self._runs.get(run, (0, deque(maxlen=MOST)))
            newest.append(update)
            self._runs[run] = (count + 1, newest)
            return first

    def take(self) -> list[dict[str, Any]]:
        """Return an event for each run, and forget what they hold."""
        with self._lock:
            runs, self._runs = self._runs, {}
        return [
            {"run": run, "n_updates": count, "updates": list(newest)}
            for run, (count, newest) in runs.items()
        ]


_TIMELINE = Timeline()


def log_update(run: str, block: int, step: int, start: float, end: float) -> None:
    """Log one update from within a Dask task; sent with others in ``EVERY_S``."""
    if _TIMELINE.add(run, (block, step, start, end)):
        from distributed import get_worker

        worker = get_worker()
        worker.loop.add_callback(worker.loop.call_later, EVERY_S, _send, worker)


def _send(worker: Any) -> None:
    for event in _TIMELINE.take():
        worker.log_event(TOPIC, {"worker": worker.address, **event})
