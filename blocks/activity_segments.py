"""A network cut into segments that perturb themselves: a pass, and what it teaches.

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

from blocks.activity_layers import Call, Sums, add_estimate, trained_layers
from blocks.activity_links import apply
from blocks.activity_noise import NoiseSource
from blocks.losses import LossFunction


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One module of a chain, and its layers that are perturbed: by name."""

    module: nn.Module
    layers: tuple[tuple[str, nn.Module], ...]

    @property
    def single(self) -> bool:
        """Whether the module is itself such a layer, not one that calls some."""
        return bool(self.layers) and self.layers[0][1] is self.module


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Links in sequence; ``index`` 0 is fed with samples, the others with pairs."""

    index: int
    links: tuple[Link, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained, each once, in the order of the links."""
        found = {
            id(p): p
            for link in self.links
            for p in link.module.parameters()
            if p.requires_grad
        }
        return list(found.values())


def cut(module: nn.Module) -> tuple[Segment, ...]:
    """Cut a chain before each link that has weights.

    A link is a module of a sequence, nested or not; it has weights if it holds a
    trainable array of two or more dimensions. A module whose path only its own
    ``forward`` knows is one link, and may hold many layers.

    Raises
    ------
    ValueError — if parameters belong to a module that cannot be perturbed; named.
    """
    groups: list[list[Link]] = [[]]
    begun = False
    for name, part in _links(module):
        layers = tuple(trained_layers(part, name))
        weighty = any(p.requires_grad and p.dim() >= 2 for p in part.parameters())
        if weighty and begun:
            groups.append([])
        begun = begun or weighty
        groups[-1].append(Link(part, layers))
    return tuple(Segment(i, tuple(links)) for i, links in enumerate(groups))


def _links(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order of the pass; only a plain sequence is opened."""
    if type(module).forward is not nn.Sequential.forward:
        yield name, module
        return
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _links(child, f"{name}.{child_name}" if name else child_name)


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
                add = record.spread if single else record.perturb
                x, own, single = add(link.module, x, link.module(x)), True, False
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


@dataclass(slots=True)
class _Record:
    """Adds noise to the layers of one segment, and keeps their calls."""

    segment: int
    draws: int
    source: NoiseSource
    calls: list[Call] = field(default_factory=list)
    n_rows: int = 0  # of a module that calls layers itself

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return self.source(self.segment << 32 | len(self.calls), (self.draws, *shape))

    def spread(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(2·D·n, …) of one output (n, …) that all draws share."""
        noise = self._noise(y.shape)
        pairs = y.new_empty((self.draws, 2, *y.shape))
        torch.add(y, noise, out=pairs[:, 0])
        torch.sub(y, noise, out=pairs[:, 1])
        self.calls.append(Call(layer, x, noise))
        return pairs.flatten(0, 2)

    def perturb(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(2·D·n, …) outputs, with noise added in place."""
        ahead, behind = y.unflatten(0, (self.draws, 2, -1)).unbind(1)
        noise = self._noise(ahead.shape[1:])
        ahead += noise
        behind -= noise
        plus, minus = x.unflatten(0, (self.draws, 2, -1)).unbind(1)
        inputs = torch.add(plus, minus).mul_(0.5).flatten(0, 1)
        self.calls.append(Call(layer, inputs, noise))
        return y

    @contextlib.contextmanager
    def listening(self, link: Link) -> Iterator[None]:
        """Perturb the layers that a module calls while it runs."""
        names = {id(layer): name for name, layer in link.layers}

        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            (x,) = args
            if len(x) != self.n_rows or len(y) != self.n_rows:
                raise ValueError(
                    f"Layer `{names[id(layer)]}` must be called with one row a sample "
                    f"for activity perturbation; got {len(x)} rows for {self.n_rows} "
                    "samples. Keep samples in the first dimension."
                )
            return self.perturb(layer, x, y)

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
