"""Joint probes: all blocks' antithetic probes around their centres, as one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import Message
from blocks.layout import Layout
from blocks.low_rank import NO_MATRICES, Directions, draw_directions, find_matrices
from blocks.partition import Block, join
from blocks.probes import probe_points


@dataclass(frozen=True, slots=True, eq=False)
class JointProbes:
    """K = 2·n_pairs joint probes of a network: of every block centre, σ, directions.

    Probe 2i is centre + σ n_i in every block, probe 2i + 1 is centre − σ n_i.
    """

    blocks: tuple[Block, ...]
    centres: tuple[Tensor, ...]  # one a block: (d,) float32
    stds: tuple[float, ...]  # one a block: σ
    directions: tuple[Directions, ...]  # one a block
    n_params: int  # P

    @property
    def n_pairs(self) -> int:
        """Antithetic pairs, K/2."""
        return self.directions[0].n_pairs

    def centre(self) -> Tensor:
        """(P,) the blocks' centres joined."""
        return join(self.centres, self.blocks, self.n_params)

    def points(self, start: int = 0, stop: int | None = None) -> Tensor:
        """(2·(stop − start), P) the parameter vectors of some pairs, written out."""
        parts = [
            probe_points(centre, std, dirs.dense(start, stop))
            for centre, std, dirs in zip(
                self.centres, self.stds, self.directions, strict=True
            )
        ]
        return join(parts, self.blocks, self.n_params)


def matrices_of(
    algorithm: Any, blocks: Sequence[Block], layout: Layout
) -> tuple[np.ndarray, ...]:
    """Return of each block what an algorithm's low-rank probes take for matrices.

    Parameters
    ----------
    algorithm : its ``rank`` is R; without one, or with 0, no block has any.
    blocks, layout : of the network.

    Returns
    -------
    One (m, 3) int64 a block, see ``low_rank.find_matrices``.
    """
    rank = getattr(algorithm, "rank", 0)
    if rank == 0:
        return (NO_MATRICES,) * len(blocks)
    return tuple(find_matrices(block.indices, layout, rank) for block in blocks)


def draw_probes(
    algorithm: Any,
    seed: int,
    messages: Mapping[int, Message],
    steps: Sequence[int],
    blocks: Sequence[Block],
    matrices: Sequence[np.ndarray],
    n_params: int,
    device: torch.device | str = "cpu",
) -> JointProbes:
    """Return the joint probes around messages' points, from seeds alone.

    Parameters
    ----------
    algorithm : its ``n_probes`` (even), ``probe_kind`` and ``rank`` say what is drawn.
    seed : int — run seed.
    messages : by node (block), the messages of ``steps``.
    steps : (n_nodes,) each node's own step that announced its point.
    blocks, matrices : of all nodes, see ``matrices_of``.
    n_params : int — P.
    device : where directions live.

    Raises
    ------
    ValueError — without blocks: what replicas' probes would join to is not defined.
    """
    if not blocks:
        raise ValueError(
            f"`n_probes` must be 1 for a method without blocks; got "
            f"{algorithm.n_probes} of {algorithm.kind}. Score the points themselves."
        )
    dirs = tuple(
        draw_directions(
            seed,
            node,
            steps[node],
            algorithm.n_probes // 2,
            block.size,
            algorithm.probe_kind,
            getattr(algorithm, "rank", 0),
            matrices[node],
            device,
        )
        for node, block in enumerate(blocks)
    )
    ordered = [messages[node] for node in range(len(blocks))]
    return JointProbes(
        tuple(blocks),
        tuple(m.point for m in ordered),
        tuple(m.probe_std for m in ordered),
        dirs,
        n_params,
    )
