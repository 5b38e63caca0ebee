"""Which workers of one cluster belong to which of the runs that go side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.config import RunConfig

WAIT_S = 0.5  # between two looks at which workers there are


class Leases:
    """Workers by name, each lent to one run at a time.

    Parameters
    ----------
    workers : → names of the workers that are there now.
    """

    def __init__(self, workers: Callable[[], list[str]]) -> None:
        self._workers = workers
        self._lent: set[str] = set()
        self._changed = threading.Condition()

    def take(self, wanted: int, timeout_s: float = WAIT_S) -> tuple[str, ...]:
        """Lend ``wanted`` workers, or all there are if they are fewer.

        Returns
        -------
        Names; () if they did not become free within ``timeout_s``.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._free(wanted)), timeout_s)
            names = self._free(wanted)
            self._lent |= set(names)
            return names

    def give_back(self, names: tuple[str, ...]) -> None:
        """Make workers free again."""
        with self._changed:
            self._lent -= set(names)
            self._changed.notify_all()

    def _free(self, wanted: int) -> tuple[str, ...]:
        there = self._workers()
        most = min(wanted, len(there))
        free = [name for name in there if name not in self._lent]
        return tuple(free[:most]) if most and len(free) >= most else ()


def workers_needed(config: RunConfig) -> int:
    """Workers that a run in a batch asks for.

    A synchronous run has the same result on any number, and is most efficient on one;
    blocks with workers of their own need them, and an asynchronous run's workers are
    part of what it is.
    """
    if config.barrier:
        return len(set(config.own_worker)) + 1
    return config.cluster.workers


def placed(config: RunConfig, names: tuple[str, ...], address: str) -> RunConfig:
    """The same run on lent workers of the cluster at ``address``."""
    cluster = config.cluster.model_copy(
        update={
            "kind": "address",
            "address": address,
            "only": names,
            "workers": len(names) if config.barrier else config.cluster.workers,
        }
    )
    return config.model_copy(update={"cluster": cluster})
