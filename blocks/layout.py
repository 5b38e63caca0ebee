"""Where each parameter and float buffer of a module lies in the flat vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Segment:
    """One named tensor's place in a flat vector: ``flat[start:stop].view(shape)``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """The flat order of a module: parameters in θ, float buffers in a vector apart.

    θ holds every parameter with ``requires_grad``, in the order of
    ``module.named_parameters()``; a parameter that several modules share is there once,
    under its first name. Frozen parameters and integer buffers are constants of the
    module and in neither vector.

    Float buffers (the running statistics of batch normalisation) are in no block: they
    form a second flat vector. Gradient-free methods calibrate it once, at the initial
    weights on the scoring subset, and keep it; gradient methods update it as training
    mode does and send it along (``Message.buffers``).
    """

    segments: tuple[Segment, ...]
    buffer_segments: tuple[Segment, ...] = ()

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each layer: neighbouring parameters of one submodule."""
        found: dict[str, tuple[int, int]] = {}
        for segment in self.segments:
            owner = segment.name.rpartition(".")[0]
            start = found[owner][0] if owner in found else segment.start
            if owner in found and found[owner][1] != segment.start:
                owner = segment.name  # a shared module's parameters need not be near
                start = segment.start
            found[owner] = (start, segment.stop)
        return tuple(found.values())

    @classmethod
    def from_module(cls, module: nn.Module) -> Layout:
        """Return the layout of a module.

        Raises
        ------
        ValueError — if nothing is trainable, a parameter is lazy (has no shape yet), a
            trainable parameter is complex, or one or a float buffer is sparse.
        """
        trained = []
        for name, parameter in module.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"`module` must have parameters of known shape; got lazy `{name}`. "
                    "Run one batch through the module first."
                )
            if not parameter.requires_grad:
                continue
            if not parameter.is_floating_point():
                raise ValueError(
                    f"`module` must have real parameters; got `{name}` of "
                    f"{parameter.dtype}. Keep real and imaginary parts apart."
                )
            trained.append((name, parameter))
        if not trained:
            raise ValueError(
                "`module` must have at least one trainable parameter; got none of "
                f"{type(module).__name__}. Check `requires_grad`."
            )
        buffers = [(n, b) for n, b in module.named_buffers() if b.is_floating_point()]
        for name, tensor in (*trained, *buffers):
            if tensor.layout is not torch.strided:
                raise ValueError(
                    "`module` must have dense parameters and buffers; got "
                    f"`{name}` of layout {tensor.layout}. Store it as a dense tensor."
                )
        return cls(_place(trained), _place(buffers))

    @property
    def n_params(self) -> int:
        """P, the length of θ."""
        return self.segments[-1].stop

    @property
    def n_buffers(self) -> int:
        """B, elements of all float buffers together."""
        return self.buffer_segments[-1].stop if self.buffer_segments else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters in flat order."""
        return tuple(segment.name for segment in self.segments)

    def describe(self) -> dict[str, list[dict[str, object]]]:
        """Names and shapes, in flat order, of "params" and "buffers", for JSON."""
        return {
            key: [{"name": s.name, "shape": list(s.shape)} for s in segments]
            for key, segments in (
                ("params", self.segments),
                ("buffers", self.buffer_segments),
            )
        }

    def owners(self, indices: Iterable[int]) -> list[str]:
        """Names of the parameters that flat indices fall into, in flat order."""
        wanted = torch.tensor(list(indices), dtype=torch.int64)
        starts = torch.tensor([s.start for s in self.segments])
        hit = torch.searchsorted(starts, wanted, right=True) - 1
        # Of several starts at one place (empty parameters) the last is the owner.
        return [self.segments[i].name for i in sorted(set(hit.tolist()))]


def _place(named: Iterable[tuple[str, Tensor]]) -> tuple[Segment, ...]:
    """Segments of tensors laid end to end."""
    segments, start = [], 0
    for name, tensor in named:
        shape = tuple(tensor.shape)
        stop = start + math.prod(shape)
        segments.append(Segment(name, shape, start, stop))
        start = stop
    return tuple(segments)
