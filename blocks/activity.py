"""Activity perturbation: gradients from per-sample losses and the layers' own noise.

A pass adds independent noise ξ to every layer's outputs, for every sample, in
antithetic pairs. A layer that knows its own inputs and noise, and is told each sample's
two losses, estimates its gradient: no backward pass and no autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blocks.activity_chain import cut
from blocks.activity_layers import Call, Sums
from blocks.activity_noise import ActivityNoise, NoiseKey
from blocks.activity_segments import (
    pair_losses,
    perturbed_pass,
    sample_weights,
    segment_estimate,
    segment_forward,
)
from blocks.batched import samples_at_once
from blocks.flat import aligned
from blocks.forward import FlatModel
from blocks.layout import Layout
from blocks.losses import LossFunction
from blocks.partition import Block

__all__ = ["ActivityModel", "ActivityNoise", "check_blocks", "sample_weights"]

_FEWEST = 25  # samples of a part: fewer leave the first layer's product too small

Kept = tuple[tuple[Call, ...], ...]  # by part of a batch


class ActivityModel:
    """Perturbs every layer of a network in one pass, and credits it.

    With ξ of standard deviation σ on a layer's outputs (σ of a layer: ``noise_scale``;
    behind its rectifier and pool: ``blocks.activity_tails``) and ℓ± a sample's losses,
    δ_n = (ℓ⁺_n − ℓ⁻_n)/(2σ²)·ξ_n, and Σ_n x_n δ_n' estimates the sum of the samples'
    gradients without bias up to O(σ²); x_n is the mean of the pair's two inputs, D
    draws are averaged. A batch is taken in parts of a fixed number of samples.

    A chain of layers can also be run segment by segment (``segment_forward``,
    ``segment_estimate``): the same numbers, bit for bit.

    Parameters
    ----------
    model : the network; evaluation mode, so frozen statistics of batch normalisation.
    noise : settings of the noise.

    Raises
    ------
    ValueError — if a trainable parameter belongs to a module that is neither dense,
        convolutional nor a normalisation (or is a batch normalisation without running
        statistics); it is named.

    References
    ----------
    Node perturbation: Williams (1992), Machine Learning 8, doi 10.1007/BF00992696;
    Werfel, Xie & Seung (2003), Learning curves for stochastic gradient descent in
    linear feedforward networks, NeurIPS. The form here is our own derivation.
    """

    def __init__(self, model: FlatModel, noise: ActivityNoise) -> None:
        self.noise = noise
        self._model = model
        held = model._held
        self._segments = cut(held.module)
        places = zip(held.params, model.layout.segments, strict=True)
        self._places = {id(p): (place.start, place.stop) for p, place in places}
        at_once = samples_at_once(held.module, model.device.type)
        self._at_once = max(_FEWEST, at_once // noise.draws)

    @property
    def n_segments(self) -> int:
        """How many segments the network is cut into; 1 if it is no chain."""
        return len(self._segments)

    def credit(
        self,
        params: Tensor,
        x: Tensor,
        targets: Tensor,
        loss_function: LossFunction,
        key: NoiseKey,
        buffers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of all pairs, and the estimate of the gradients' sum.

        Parameters
        ----------
        params, buffers : (P,) and (B,) float32; buffers ``None``: the initial ones.
        x, targets : (n, C, H, W) float32 and (n,) int64.
        loss_function : (logits, targets) → (n,) losses.
        key : (run seed, version, shard · 2^16 + batch); the noise is a function of it.

        Returns
        -------
        ((2·D, n) float32 losses, order +0, −0, +1, −1, …; (P,) float32 Σ x_n δ_n').

        Raises
        ------
        ValueError — if a layer is not called, or on other rows than samples.
        """
        sums: list[Sums] = [{} for _ in self._segments]
        noise = self.noise
        losses = []
        held = self._model._held
        with torch.no_grad(), held.holding(params, buffers), held.door():
            parts = self._split(x), targets.split(self._at_once)
            for part, (rows, wanted) in enumerate(zip(*parts, strict=True)):
                source = noise.source(key, part, self._model.device)
                found = perturbed_pass(
                    *(self._segments, rows, wanted, loss_function),
                    *(noise.draws, noise.std, source, sums),
                )
                losses.append(found.float())
            estimate = params.new_zeros(self._model.n_params)
            for own in sums:
                self._write(estimate, own)
        return torch.cat(losses, dim=1), estimate

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = self._model._held.lent(x).split(self._at_once)
        return parts

    def _write(self, flat: Tensor, sums: Sums) -> None:
        """Add sums to their places in a vector (P,)."""
        for key, value in sums.items():
            start, stop = self._places[key]
            flat[start:stop] += value.reshape(-1)

    # -- segment by segment -------------------------------------------------------

    def segment_indices(self, segment: int) -> np.ndarray:
        """(d,) int64 sorted flat indices of the parameters of one segment."""
        own = self._segments[segment].parameters
        spans = [self._places[id(p)] for p in own]
        return np.concatenate([np.arange(*span) for span in sorted(spans)])

    def segment_forward(
        self,
        segment: int,
        params: Tensor,
        x: Tensor | Sequence[Tensor],
        key: NoiseKey,
        buffers: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Kept]:
        """Return one segment's perturbed outputs, by part, and what it keeps.

        Parameters
        ----------
        segment : int — from 0.
        params, buffers : (P,), (B,); only the segment's own entries matter.
        x : (n, C, H, W) for segment 0; else the outputs of the one before.
        key : as for ``credit``.

        Returns
        -------
        (outputs, a tensor (2·D·n_part, …) a part; what ``segment_estimate`` needs).
        """
        parts = self._split(x) if isinstance(x, Tensor) else tuple(x)
        outputs, kept = [], []
        held = self._model._held
        with torch.no_grad(), held.holding(params, buffers), held.door():
            for part, rows in enumerate(parts):
                source = self.noise.source(key, part, self._model.device)
                answer, calls = segment_forward(
                    self._segments[segment], held.lent(rows), self.noise.draws, source
                )
                outputs.append(answer)
                kept.append(calls)
        return tuple(outputs), tuple(kept)

    def output_losses(
        self, outputs: Sequence[Tensor], targets: Tensor, loss_function: LossFunction
    ) -> Tensor:
        """(2·D, n) float32 losses of the last segment's outputs."""
        parts = zip(outputs, targets.split(self._at_once), strict=True)
        found = [
            pair_losses(aligned(logits), wanted, loss_function).float()
            for logits, wanted in parts
        ]
        return torch.cat(found, dim=1)

    def segment_estimate(self, segment: int, kept: Kept, losses: Tensor) -> Tensor:
        """(d,) float32 Σ x_n δ_n' of one segment's parameters, from (2·D, n) losses."""
        sums: Sums = {}
        with torch.no_grad():
            parts = losses.split(self._at_once, dim=1)
            for calls, part in zip(kept, parts, strict=True):
                weights = sample_weights(part, self.noise.std)
                segment_estimate(sums, calls, weights)
            flat = losses.new_zeros(self._model.n_params)
            self._write(flat, sums)
        return flat[torch.from_numpy(self.segment_indices(segment)).to(flat.device)]


def check_blocks(model: FlatModel | Layout, blocks: Sequence[Block]) -> None:
    """Check that every layer's parameters belong to one block.

    Raises
    ------
    ValueError — if a layer is split over several blocks; it is named.
    """
    layout = model.layout if isinstance(model, FlatModel) else model
    owner = np.empty(layout.n_params, dtype=np.int64)
    for block in blocks:
        owner[block.indices] = block.index
    for start, stop in layout.layers:
        holders = np.unique(owner[start:stop])
        if len(holders) > 1:
            name = next(s.name for s in layout.segments if s.stop > start)
            raise ValueError(
                "`blocks` must keep each layer whole for activity perturbation; got "
                f"the layer of `{name}` split over {len(holders)} blocks. Use "
                '"by_layer", "all", or custom patterns of whole layers.'
            )
