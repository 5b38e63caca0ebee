"""A block's step from an estimated slope: Adam, momentum, or the slope itself."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from blocks.optimisers import Adam, Momentum

OptimiserName = Literal["adam", "momentum", "none"]
Memory = Adam | Momentum | None  # what an optimiser remembers; None: nothing

_BETA2 = 0.999  # decay of Adam's second moment


def start_memory(name: OptimiserName, centre: Tensor) -> Memory:
    """Return what an optimiser remembers before its first step around ``centre``."""
    if name == "none":
        return None
    return Adam.zeros(centre) if name == "adam" else Momentum.zeros(centre)


def descend(memory: Memory, slope: Tensor, momentum: float) -> tuple[Memory, Tensor]:
    """Return the new memory and the direction to step against.

    Parameters
    ----------
    memory : of ``start_memory``, or of the step before.
    slope : (d,) float32 — estimated gradient.
    momentum : float — β1 of Adam, μ of momentum; without effect on the plain slope.
    """
    if isinstance(memory, Adam):
        return memory.step(slope, momentum, _BETA2)
    if isinstance(memory, Momentum):
        return memory.step(slope, momentum)
    return None, slope
