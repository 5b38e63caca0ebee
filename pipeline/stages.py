"""Which worker runs which layers of a pipelined run, and what it keeps on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blocks.activity_noise import NoiseKey
from pipeline.context import Context


@dataclass(frozen=True, slots=True)
class Wave:
    """One batch of one shard of a version's minibatch."""

    number: int
    shard: int
    batch: int  # of the shard

    def key(self, seed: int, version: int) -> NoiseKey:
        """Of the wave's noise; the replica form's."""
        return seed, version, (self.shard << 16) + self.batch


@dataclass(frozen=True, slots=True)
class Stages:
    """Which worker runs which segment of the network, and in which waves."""

    nodes: tuple[int, ...]  # that hold the segments' blocks
    owners: tuple[int, ...]  # rank, by segment
    own: tuple[int, ...]  # segments of this rank, in order
    waves: tuple[Wave, ...]

    def crosses(self, segment: int) -> bool:
        """Whether a segment's outputs go to another block."""
        return self.nodes[segment] != self.nodes[segment + 1]

    @classmethod
    def of(cls, context: Context, owners: dict[int, int], rank: int) -> Stages:
        """Assign segments to the workers that hold their blocks (node → rank)."""
        nodes = tuple(blocks_of_segments(context))
        by_segment = tuple(owners[node] for node in nodes)
        config = context.config
        waves: list[Wave] = []
        parts = np.array_split(np.arange(context.data.n_loss), config.n_shards)
        for shard, part in enumerate(parts):
            for batch in range(-(-len(part) // config.batch_size)):
                waves.append(Wave(len(waves), shard, batch))
        own = tuple(s for s, owner in enumerate(by_segment) if owner == rank)
        return cls(nodes, by_segment, own, tuple(waves))


def blocks_of_segments(context: Context) -> list[int]:
    """Node that holds each segment of the network.

    Raises
    ------
    ValueError — if a segment's layers are split over several blocks.
    """
    assert context.activity is not None
    owner = np.empty(context.model.n_params, dtype=np.int64)
    for block in context.blocks:
        owner[block.indices] = block.index
    found = []
    for segment in range(context.activity.n_segments):
        nodes = np.unique(owner[context.activity.segment_indices(segment)])
        if len(nodes) != 1:
            raise ValueError(
                "`blocks` must keep a layer and its normalisation together for "
                f"`pipelined`; got segment {segment} split over blocks "
                f'{nodes.tolist()}. Use "by_layer", or leave `pipelined` out.'
            )
        found.append(int(nodes[0]))
    return found


@dataclass(slots=True)
class Estimates:
    """Sums of one segment's estimates over waves, in the order of the waves."""

    total: Tensor  # (d,) over shards
    shard: Tensor  # (d,) over the batches of the current shard
    current: int = 0

    @classmethod
    def nothing(cls, size: int, device: torch.device) -> Estimates:
        """Before the first wave."""
        return cls(torch.zeros(size, device=device), torch.zeros(size, device=device))

    def add(self, wave: Wave, part: Tensor) -> None:
        """Add what one wave says; waves come in order."""
        if wave.shard != self.current:
            self.close()
            self.current = wave.shard
        self.shard += part

    def close(self) -> None:
        """Add the current shard to the total."""
        self.total += self.shard
        self.shard.zero_()


@dataclass(slots=True)
class Pass:
    """One version's way through this worker's segments."""

    version: int
    theta: Tensor  # (P,) with the values of the own blocks
    start: float = field(default_factory=time.time)
    kept: dict[tuple[int, int], Any] = field(default_factory=dict)  # (wave, segment)
    losses: dict[int, Tensor] = field(default_factory=dict)  # by wave: (2D, n)
    n_forward: int = 0  # waves that are through the own segments
    n_credited: int = 0
    steps: dict[int, int] = field(default_factory=dict)  # of the own nodes, if free
