"""Which worker updates which blocks and scores which shards; never changes a result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.rounds import Share


def place_nodes(
    n_nodes: int, n_workers: int, own_worker: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    """Spread nodes evenly over workers; those in ``own_worker`` get the last, one each.

    Returns
    -------
    Node tuples by worker, in order.

    Raises
    ------
    ValueError — if a node does not exist, or too few workers are there.
    """
    wrong = [node for node in own_worker if not 0 <= node < n_nodes]
    if wrong:
        raise ValueError(
            f"`own_worker` must name blocks 0 to {n_nodes - 1}; got {wrong}. "
            "Correct the numbers."
        )
    alone = sorted(set(own_worker))
    shared = n_workers - len(alone)
    if shared < 1 and len(alone) < n_nodes:
        raise ValueError(
            f"`own_worker` must leave a worker for the other blocks; got {len(alone)} "
            f"of {n_workers} workers. Start more workers."
        )
    rest = [node for node in range(n_nodes) if node not in alone]
    groups = [
        tuple(int(i) for i in part) for part in np.array_split(rest, max(shared, 1))
    ]
    return groups[:shared] + [(node,) for node in alone]


def short_list(nodes: Sequence[int]) -> str:
    """Names of blocks in the key of a future: ``b0+b2``, the first four of more."""
    more = "+…" if len(nodes) > 4 else ""
    return "+".join(f"b{node}" for node in nodes[:4]) + more


def group_slots(
    groups: Sequence[tuple[int, ...]], placed: Sequence[tuple[int, ...]]
) -> list[int]:
    """Worker of each group: its place in ``placed``, or its own number if not there."""
    where = {group: worker for worker, group in enumerate(placed)}
    return [where.get(group, number) for number, group in enumerate(groups)]


def place(
    n_nodes: int, n_shards: int, n_workers: int, own_worker: Sequence[int] = ()
) -> tuple[Share, ...]:
    """Shares of a synchronous piece; ``n_shards`` = 0 for algorithms without scores.

    Workers of a node of their own score nothing; workers with nothing to do are left
    out.
    """
    groups = place_nodes(n_nodes, n_workers, own_worker)
    n_scorers = max(n_workers - len(set(own_worker)), 1)
    parts = np.array_split(np.arange(n_shards), n_scorers)
    shards = [tuple(int(i) for i in part) for part in parts]
    shards += [()] * (len(groups) - len(shards))
    shares = [Share(nodes, mine) for nodes, mine in zip(groups, shards, strict=True)]
    return tuple(share for share in shares if share.nodes or share.shards)
