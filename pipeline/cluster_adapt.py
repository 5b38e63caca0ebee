"""Clusters that grow and shrink: as Dask sees fit, but not below what runs ask for."""

from __future__ import annotations

from typing import Any, Protocol

from distributed import Adaptive


class Bounds(Protocol):
    """What an adaptive cluster is asked for."""

    def want(self, n: int) -> None:
        """Keep at least ``n`` workers, within the cluster's bounds; 0 = no wish."""


class Wanted(Adaptive):
    """Dask's own scaling, with a number of workers that is asked for from outside.

    Dask counts the tasks that wait. A run submits few, and long ones, so it says itself
    how many workers it can use.
    """

    wanted = 0

    def want(self, n: int) -> None:
        """Keep at least ``n`` workers, within the bounds; 0 leaves it to Dask."""
        self.wanted = n

    async def target(self) -> int:
        """Workers that should be there; the caller keeps it within the bounds."""
        adaptive: Any = super()
        own: int = await adaptive.target()
        return max(own, self.wanted)

    async def workers_to_close(self, target: int) -> list[Any]:
        """Names of the workers to close: none that runs a task now."""
        names: list[Any] = await super().workers_to_close(target)
        if not names:
            return []
        tasks = await self.scheduler.processing(workers=None)
        there = (await self.scheduler.identity(n_workers=-1))["workers"]
        busy = {there[a]["name"] for a, keys in tasks.items() if keys and a in there}
        return [name for name in names if name not in busy]


class OperatorBounds:
    """Scaling by Dask's Kubernetes operator, which is told a new minimum."""

    def __init__(self, cluster: Any, least: int, most: int) -> None:
        self._cluster, self._least, self._most = cluster, least, most
        self.want(0)

    def want(self, n: int) -> None:
        """Raise the operator's minimum to ``n``, within the bounds."""
        least = min(max(n, self._least), self._most)
        self._cluster.adapt(minimum=least, maximum=self._most)


def adapt(cluster: Any, bounds: tuple[int, int] | None) -> Bounds | None:
    """Let a cluster scale itself between ``bounds``; None if it is of fixed size."""
    if bounds is None:
        return None
    least, most = bounds
    found: Bounds = cluster.adapt(Adaptive=Wanted, minimum=least, maximum=most)
    return found
