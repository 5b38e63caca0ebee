"""Which workers of one cluster belong to which of the runs that go side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from pipeline.config import ClusterConfig, RunConfig

WAIT_S = 0.5  # between two looks of a waiting run at whether it is still wanted
PATIENCE_S = 60.0  # for all the workers a run asks for, while none is at work

Lend = Callable[[], AbstractContextManager[ClusterConfig]]


class RunIsLocked(RuntimeError):
    """Another process trains this very run."""


class NoLease(RuntimeError):
    """A run was prepared, but the batch ended before it got its workers."""


class ClusterLost(RuntimeError):
    """A run lost its scheduler: no fault of its own, and the run can go on."""


class Leases:
    """Workers by name, each lent to one run at a time, in the order of asking.

    Parameters
    ----------
    most : workers that there can be, though they are not there yet; 0 = unknown.
    patience_s : after which a run takes fewer than it asked for, if none else is at
        work, seconds.
    """

    def __init__(self, most: int = 0, patience_s: float = PATIENCE_S) -> None:
        self._most = most
        self._patience_s = patience_s
        self._there: tuple[str, ...] = ()
        self._lent: set[str] = set()
        self._queue: list[object] = []
        self._changed = threading.Condition()

    @property
    def n_lent(self) -> int:
        """Workers that are lent now."""
        return len(self._lent)

    def update(self, there: Sequence[str]) -> None:
        """Say which workers there are now."""
        with self._changed:
            if set(there) != set(self._there):
                self._there = tuple(there)
                self._changed.notify_all()

    def take(self, wanted: int, given_up: Callable[[], bool]) -> tuple[str, ...]:
        """Wait for ``wanted`` workers, or all that there can be if they are fewer.

        Returns
        -------
        Names; () if ``given_up()`` became true.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            idle_since = time.monotonic()
            try:
                while not given_up():
                    now = time.monotonic()
                    if self._lent or self._queue[0] is not ticket:
                        idle_since = now
                    patient = now - idle_since < self._patience_s
                    names = self._free(wanted, patient=patient)
                    if names and self._queue[0] is ticket:
                        self._lent |= set(names)
                        return names
                    self._changed.wait(WAIT_S)
                return ()
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def give_back(self, names: Sequence[str]) -> None:
        """Make workers free again."""
        with self._changed:
            self._lent -= set(names)
            self._changed.notify_all()

    def _free(self, wanted: int, *, patient: bool) -> tuple[str, ...]:
        possible = max(len(self._there), self._most if patient else 0)
        most = min(wanted, possible)
        free = [name for name in self._there if name not in self._lent]
        return tuple(free[:most]) if most and len(free) >= most else ()


def workers_needed(config: RunConfig) -> int:
    """Workers that a run in a batch asks for; 0 if it computes in this process.

    A synchronous run has the same result on any number, and is most efficient on one;
    blocks with workers of their own need them, and an asynchronous run's workers are
    part of what it is.
    """
    if config.cluster.kind == "in-process":
        return 0
    if config.barrier and not config.pipelined:
        return len(set(config.own_worker)) + 1
    return config.cluster.workers


def planned(config: RunConfig) -> RunConfig:
    """The same run, asking for as many workers as it is lent."""
    needed = workers_needed(config)
    if not needed or needed == config.cluster.workers:
        return config
    cluster = config.cluster.model_copy(update={"workers": needed})
    return config.model_copy(update={"cluster": cluster})


def lent(
    config: RunConfig, names: Sequence[str], shared: ClusterConfig, address: str
) -> ClusterConfig:
    """Where a run computes that was lent workers of a cluster at ``address``."""
    return shared.model_copy(
        update={
            "kind": "address",
            "address": address,
            "scheduler_file": None,
            "adapt": None,
            "only": tuple(names),
            "workers": len(names) if config.barrier else config.cluster.workers,
            "resource": config.cluster.resource or shared.resource,
            "task_timeout_s": config.cluster.task_timeout_s,
        }
    )
