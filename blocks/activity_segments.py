"""Segments of a network perturb themselves: a pass, and what it teaches.

A segment is a layer and what follows it up to the next one. It takes the activations
of all antithetic pairs, adds noise of its own to its layers' outputs and hands the
result on; afterwards the per-sample losses and what it kept are all it needs for its
own estimate. Nothing comes back from the segments above.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from blocks.activity_chain import Link, Segment
from blocks.activity_layers import Call, Sums, add_estimate
from blocks.activity_links import apply
from blocks.activity_noise import NoiseSource, noise_scale
from blocks.activity_tails import Tail, passed
from blocks.losses import LossFunction
from blocks.usercode import UserCodeError

# Share of its noise that an output which the rectifier stopped is credited with: pure
# chance, but under Adam a unit that is off for every sample wanders on it until it is
# heard again. Without it, half of LeNet's units were off for good after 400 steps.
UNHEARD = 0.2


def segment_forward(
    segment: Segment, x: Tensor, draws: int, source: NoiseSource
) -> tuple[Tensor, tuple[Call, ...]]:
    """Return a segment's perturbed outputs, and what it keeps for its estimate.

    The first layer of the first segment computes on the n samples once; noise makes
    the 2·D·n rows of its output.

    Parameters
    ----------
    segment : with the values to compute with, in evaluation mode.
    x : (n, …) for segment 0; else (2·D·n, …), rows of draw 0, +, then −, then of
        draw 1, …. Not modified.
    draws : int — D.
    source : noise by place (segment, call) and shape (D, n, …).

    Returns
    -------
    ((2·D·n, …) outputs, the calls of the segment's layers in order).

    Raises
    ------
    ValueError — if a layer is not called, or called on other rows than samples.
    """
    record = _Record(segment.index, draws, source)
    single = segment.index == 0  # whether x still has one row a sample
    own = False
    with torch.no_grad():
        for link in segment.links:
            if not link.layers:
                x, own = apply(link.module, x, own), False
            elif link.single:
                x, own, single = record.layer(link, x, single), True, False
            else:
                if single:
                    x = x.expand(2 * draws, *x.shape).flatten(0, 1)
                record.n_rows = len(x)
                with record.listening(link):
                    x, own, single = link.module(x), False, False
    return x, tuple(record.calls)


def segment_estimate(sums: Sums, calls: Sequence[Call], weights: Tensor) -> None:
    """Add Σ x_n δ_n' of a segment's calls to the sums of its parameters, in place.

    Parameters
    ----------
    sums : by the ``id`` of the parameter; begin with an empty one.
    calls : what ``segment_forward`` kept; not modified.
    weights : (D, n) from ``sample_weights``.
    """
    with torch.no_grad():
        for call in calls:
            add_estimate(sums, call, weights)


def sample_weights(losses: Tensor, std: float) -> Tensor:
    """(D, n) of (2·D, n) losses: (ℓ⁺ − ℓ⁻)/(2σ²D), in the losses' own precision."""
    return (losses[0::2] - losses[1::2]) / (std * std * len(losses))


def pair_losses(
    outputs: Tensor, targets: Tensor, loss_function: LossFunction
) -> Tensor:
    """(2·D, n) losses of outputs (2·D·n, …) and the targets (n,) of the samples."""
    with torch.no_grad():
        rows = targets.expand(len(outputs) // len(targets), *targets.shape)
        return loss_function(outputs, rows.flatten(0, 1)).view(-1, len(targets))


def perturbed_pass(
    segments: Sequence[Segment],
    x: Tensor,
    targets: Tensor,
    loss_function: LossFunction,
    draws: int,
    std: float,
    source: NoiseSource,
    sums: Sequence[Sums],
) -> Tensor:
    """Return (2·D, n) losses of one pass; add every segment's estimate to its sums."""
    kept = []
    for segment in segments:
        x, calls = segment_forward(segment, x, draws, source)
        kept.append(calls)
    losses = pair_losses(x, targets, loss_function)
    weights = sample_weights(losses, std)
    for own, calls in zip(sums, kept, strict=True):
        segment_estimate(own, calls, weights)
    return losses


def _itself(x: Tensor) -> Tensor:
    return x


@dataclass(slots=True)
class _Record:
    """Adds noise to the layers of one segment, and keeps their calls."""

    segment: int
    draws: int
    source: NoiseSource
    calls: list[Call] = field(default_factory=list)
    n_rows: int = 0  # of a module that calls layers itself

    def layer(self, link: Link, x: Tensor, single: bool) -> Tensor:
        """(2·D·n, …) outputs of a link that is a layer, with noise behind its tail.

        ``single``: ``x`` has one row a sample, which all draws share.
        """
        credited = _itself if single else self._ahead
        y, tail = passed(link.tail, link.module(x), credited)
        if not single:
            return self.perturb(link.module, x, y, tail)
        shared = y.expand(self.draws, *y.shape)
        return self._add(link.module, x, (shared, shared), tail)

    def perturb(self, layer: nn.Module, x: Tensor, y: Tensor, tail: Tail) -> Tensor:
        """(2·D·n, …) outputs with noise, of a layer's inputs and outputs (2·D·n, …)."""
        plus, minus = self._pairs(x)
        mean = torch.add(plus, minus).mul_(0.5).flatten(0, 1)
        return self._add(layer, mean, self._pairs(y), tail)

    def _add(
        self, layer: nn.Module, x: Tensor, y: tuple[Tensor, Tensor], tail: Tail
    ) -> Tensor:
        """Add noise to outputs (D, n, …) of either sign, and keep the call."""
        ahead, behind = y
        noise = added = self.source(self.segment << 32 | len(self.calls), ahead.shape)
        if tail.rectified:
            added = noise * ahead.sign()  # a rectifier gives no number below 0
            noise.lerp_(added, 1.0 - UNHEARD)
        scale = noise_scale(ahead.shape)
        pairs = ahead.new_empty((self.draws, 2, *ahead.shape[1:]))
        torch.add(ahead, added, alpha=scale, out=pairs[:, 0])
        torch.sub(behind, added, alpha=scale, out=pairs[:, 1])
        self.calls.append(Call(layer, x, noise, scale, tail))
        return pairs.flatten(0, 2)

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(D, n, …) rows of + and of − among those of all pairs."""
        plus, minus = x.unflatten(0, (self.draws, 2, -1)).unbind(1)
        return plus, minus

    def _ahead(self, x: Tensor) -> Tensor:
        """(D·n, …) rows of +."""
        return self._pairs(x)[0].flatten(0, 1)

    @contextlib.contextmanager
    def listening(self, link: Link) -> Iterator[None]:
        """Perturb the layers that a module calls while it runs."""
        names = {id(layer): name for name, layer in link.layers}

        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            (x,) = args
            if len(x) != self.n_rows or len(y) != self.n_rows:
                raise UserCodeError(
                    f"Layer `{names[id(layer)]}` must be called with one row a sample "
                    f"for activity perturbation; got {len(x)} rows for {self.n_rows} "
                    "samples. Keep samples in the first dimension."
                )
            return self.perturb(layer, x, y, Tail())

        before = len(self.calls)
        with contextlib.ExitStack() as stack:
            for _, layer in link.layers:
                handle = layer.register_forward_hook(hook)
                stack.callback(handle.remove)
            yield
        called = {id(call.layer) for call in self.calls[before:]}
        silent = [name for name, layer in link.layers if id(layer) not in called]
        if silent:
            raise ValueError(
                f"`model` must call every layer that it trains; got no call of "
                f"`{silent[0]}`, so its weights cannot be credited. Call the layer, or "
                "freeze its parameters."
            )
