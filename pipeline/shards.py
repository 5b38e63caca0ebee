"""Which training samples a replica sees, and in which order; the same everywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from blocks.algorithm import step_rng

_SHARD, _EPOCH, _POOLED = 3, 4, 5  # streams of `step_rng`


def deal(
    n_samples: int, n_nodes: int, seed: int, labels: np.ndarray | None, skew: float
) -> list[np.ndarray]:
    """Deal shuffled samples to nodes: evenly, or a share of them class by class.

    Parameters
    ----------
    labels : (n_samples,) int — only needed for ``skew`` > 0.
    skew : float in [0, 1] — share of the samples that are sorted by class and cut into
        contiguous parts; the rest is dealt evenly. At 1 a node sees few classes.

    Returns
    -------
    n_nodes arrays of n_samples // n_nodes sample indices each, no sample twice.
    """
    shuffled = step_rng(seed, 0, 0, _SHARD).permutation(n_samples)
    own = n_samples // n_nodes
    if skew <= 0 or labels is None:
        return [shuffled[node::n_nodes][:own] for node in range(n_nodes)]
    per_node = round(own * skew)
    n_sorted = per_node * n_nodes
    chosen = shuffled[:n_sorted]
    by_class = chosen[np.argsort(labels[chosen], kind="stable")]
    rest = shuffled[n_sorted:]
    return [
        np.concatenate(
            [
                by_class[node * per_node : (node + 1) * per_node],
                rest[node::n_nodes][: own - per_node],
            ]
        )
        for node in range(n_nodes)
    ]


@dataclass(slots=True)
class Walks:
    """The order in which each node walks through its samples, epoch by epoch.

    Parameters
    ----------
    n_train : int — training samples.
    n_nodes : int.
    seed : int — the run's.
    whole : bool — every node walks all samples instead of its shard.
    skew : float — see ``deal``.
    labels : → (n_train,) labels; asked once, and only for ``skew`` > 0.
    """

    n_train: int
    n_nodes: int
    seed: int
    whole: bool = False
    skew: float = 0.0
    labels: Callable[[], np.ndarray] | None = None
    _shards: list[np.ndarray] | None = None
    _orders: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def n_own(self) -> int:
        """Samples of one node."""
        return self.n_train if self.whole else self.n_train // self.n_nodes

    def own(self, node: int, step: int, size: int) -> np.ndarray:
        """Sample indices of a node's minibatch ``step``.

        Each epoch the node walks its samples in a fresh order, dropping the incomplete
        last minibatch.
        """
        size = min(size, self.n_own)
        epoch, position = divmod(step, self.n_own // size)
        order = self._order(node, epoch)
        return order[position * size : (position + 1) * size]

    def pooled(self, step: int, size: int, part: tuple[int, int]) -> np.ndarray:
        """Sample indices [start, stop) of the minibatch ``step`` that all share."""
        size = min(size, self.n_train)
        epoch, position = divmod(step, self.n_train // size)
        order = self._order(-1, epoch)
        start, stop = (position * size + min(at, size) for at in part)
        return order[start:stop]

    def _order(self, node: int, epoch: int) -> np.ndarray:
        with self._lock:
            found = self._orders.get(node)
            if found is None or found[0] != epoch:
                found = (epoch, self._shuffle(node, epoch))
                self._orders[node] = found
            return found[1]

    def _shuffle(self, node: int, epoch: int) -> np.ndarray:
        if node < 0:
            return step_rng(self.seed, 0, epoch, _POOLED).permutation(self.n_train)
        order = step_rng(self.seed, node, epoch, _EPOCH).permutation(self.n_own)
        if self.whole:
            return order
        if self._shards is None:
            labels = self.labels() if self.labels and self.skew > 0 else None
            self._shards = deal(
                self.n_train, self.n_nodes, self.seed, labels, self.skew
            )
        return self._shards[node][order]
