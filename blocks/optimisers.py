"""Update rules that several algorithms share: momentum and Adam, as pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Momentum:
    """Heavy-ball state: ``velocity`` v, (P,) float32."""

    velocity: Tensor

    @classmethod
    def zeros(cls, params: Tensor) -> Momentum:
        """State before the first step."""
        return cls(torch.zeros_like(params))

    def step(self, gradient: Tensor, momentum: float) -> tuple[Momentum, Tensor]:
        """Return the new state and the direction v ← μ v + g (Polyak 1964)."""
        velocity = self.velocity * momentum + gradient
        return Momentum(velocity), velocity


@dataclass(frozen=True, slots=True, eq=False)
class Adam:
    """Adam state: moments m and v, (P,) float32, and the number of steps taken."""

    mean: Tensor
    square: Tensor
    n_steps: int = 0

    @classmethod
    def zeros(cls, params: Tensor) -> Adam:
        """State before the first step."""
        return cls(torch.zeros_like(params), torch.zeros_like(params))

    def step(
        self, gradient: Tensor, beta1: float, beta2: float, epsilon: float = 1e-8
    ) -> tuple[Adam, Tensor]:
        """Return the new state and the direction m̂/(√v̂ + ε).

        References
        ----------
        Kingma & Ba (2015). Adam. ICLR, arXiv 1412.6980. Algorithm 1.
        """
        n_steps = self.n_steps + 1
        mean = self.mean * beta1 + gradient * (1 - beta1)
        square = self.square * beta2 + gradient * gradient * (1 - beta2)
        scale = math.sqrt(1 - beta2**n_steps) / (1 - beta1**n_steps)
        corrected_epsilon = epsilon * math.sqrt(1 - beta2**n_steps)
        return (
            Adam(mean, square, n_steps),
            mean * scale / (square.sqrt() + corrected_epsilon),
        )


def decayed(initial: float, final_fraction: float, step: int, n_steps: int) -> float:
    """Cosine decay from ``initial`` to ``final_fraction · initial`` over ``n_steps``.

    An open-ended run (``n_steps`` = 0) keeps ``initial``.
    """
    if n_steps <= 0:
        return initial
    progress = min(step / n_steps, 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return initial * (final_fraction + (1.0 - final_fraction) * cosine)
