"""What a score comes to: losses of joint points, or credit for the layers that made it.

A score is computed shard by shard and added in shard order, so that its bits depend
neither on how many workers share it nor on which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import Message
from blocks.joint_probes import draw_probes
from blocks.partition import split
from blocks.precision import dtype_of, products_in
from blocks.probe_losses import BatchLosses, probe_losses

if TYPE_CHECKING:
    from pipeline.context import Context

Credits = dict[int, Tensor]  # by node: (d,) what its activations say about the losses


@dataclass(frozen=True, slots=True)
class Scored:
    """One shard's part of a score."""

    sums: np.ndarray  # (K,) float64, per-sample float32 losses added up
    credit: np.ndarray | None = None  # (P,) float32, added over the shard's samples

    def of(self, nodes: Sequence[int], context: Context) -> dict[int, np.ndarray]:
        """By node: its part of the credit; empty for a score without credit."""
        if self.credit is None:
            return {}
        parts = split(torch.from_numpy(self.credit), context.blocks)
        return {node: parts[node].numpy() for node in nodes}


def score_shards(
    context: Context,
    messages: Mapping[int, Message],
    steps: Sequence[int],
    shards: Sequence[int],
    version: int,
    subset: int,
) -> list[Scored]:
    """Score what the nodes sent on some shards of the scoring subset.

    Parameters
    ----------
    messages : of every node, those of step ``steps[node]``.
    steps : (n_nodes,) steps that are scored.
    shards : indices of shards, each computed in its own fixed batch shapes.
    version : int — of the score; seeds the noise of activity perturbation.
    subset : which draw of the scoring subset.
    """
    if context.activity is not None:
        point = context.join([messages[n].point for n in range(context.n_nodes)])
        return [_credited(context, point, shard, version, subset) for shard in shards]
    sums = np.zeros((len(shards), context.algorithm.n_probes))
    for first, losses in _losses(context, messages, steps):
        for row, shard in enumerate(shards):
            for inputs, targets in context.data.batches("loss", [shard], subset):
                found = losses(inputs, targets).cpu().numpy()
                sums[row, first : first + len(found)] += found
    return [Scored(row) for row in sums]


def fold_losses(context: Context, in_order: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Mean losses (K,) from the sums (K,) of all shards, added in shard order."""
    total = np.zeros(context.algorithm.n_probes)
    for sums in in_order:
        total += sums
    return tuple(float(x) for x in total / context.data.n_loss)


def fold_credits(
    context: Context, in_order: Sequence[Mapping[int, np.ndarray]]
) -> Credits:
    """Mean credit of some nodes from its sums by shard, added in shard order."""
    credits: Credits = {}
    for node in in_order[0]:
        total = np.zeros_like(in_order[0][node])
        for by_node in in_order:
            total += by_node[node]
        total /= np.float32(context.data.n_loss)
        credits[node] = torch.empty(total.shape, device=context.device).copy_(
            torch.from_numpy(total)
        )
    return credits


def _credited(
    context: Context, point: Tensor, shard: int, version: int, subset: int
) -> Scored:
    """One shard's losses under activity perturbation, and the layers' credit."""
    assert context.activity is not None
    sums = np.zeros(context.algorithm.n_probes)
    credit = torch.zeros(context.model.n_params, device=context.device)
    batches = context.data.batches("loss", [shard], subset)
    for number, (inputs, targets) in enumerate(batches):
        losses, part = context.activity.credit(
            point,
            inputs,
            targets,
            context.loss_function,
            (context.config.seed, version, (shard << 16) + number),
            context.buffers,
        )
        sums += losses.double().sum(1).cpu().numpy()
        credit += part
    return Scored(sums, credit.cpu().numpy())


def _losses(
    context: Context, messages: Mapping[int, Message], steps: Sequence[int]
) -> Iterator[tuple[int, BatchLosses]]:
    """(first probe, function of a batch → losses), a few probes at a time."""
    dtype = dtype_of(context.config.precision)
    if context.algorithm.n_probes > 1:
        probes = draw_probes(
            context.algorithm,
            context.config.seed,
            messages,
            steps,
            context.blocks,
            context.matrices,
            context.model.n_params,
            context.device,
        )
        form = context.config.evaluation_form
        yield from probe_losses(
            context.model, probes, context.loss_function, form, context.buffers, dtype
        )
        return
    point = context.join([messages[node].point for node in range(context.n_nodes)])

    def alone(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            with products_in(dtype, inputs.device.type):
                logits = context.model.forward(point, inputs, context.buffers).float()
            return context.loss_function(logits, targets).double().sum().reshape(1)

    yield 0, alone
