"""Small problems for tests: a model, a loss and a few samples, without a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from blocks.activity import ActivityModel, ActivityNoise
from blocks.algorithm import Information
from blocks.forward import FlatModel
from blocks.oracle import Credit, GuardedOracle

SEED = 3
BATCH = 4  # samples of a minibatch
PROBLEMS = ("quadratic", "logistic", "mlp")


class Bowl(nn.Module):
    """Answers its six parameters for every sample: with ``bowl_loss``, a quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = skip_init(nn.Linear, 1, 6, bias=False)
        with torch.no_grad():
            self.centre.weight.copy_(torch.linspace(-1.0, 1.0, 6)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """(n, 6), the same row for every sample."""
        row: Tensor = self.centre(torch.ones((len(x), 1)))
        return row


def bowl_loss(values: Tensor, targets: Tensor) -> Tensor:
    """(n,) quadratic with curvatures 1 to 3 around ½."""
    scales = torch.linspace(1.0, 3.0, values.shape[1])
    return (scales * (values - 0.5).square()).sum(1) + 0.0 * targets


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) per-sample cross-entropy."""
    return functional.cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class Problem:
    """A model, a per-sample loss, and a few samples."""

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor  # (n, C, H, W)
    targets: Tensor  # (n,)

    @cached_property
    def model(self) -> FlatModel:
        """The module as a function of a flat vector."""
        return FlatModel(self.module)

    def minibatch(self, step: int, node: int = 0) -> tuple[Tensor, Tensor]:
        """(inputs, targets) of one node at one step: every node has its own walk."""
        n = len(self.targets)
        rows = [(BATCH * step + i + 5 * node) % n for i in range(BATCH)]
        return self.inputs[rows], self.targets[rows]

    def pooled(self, step: int, part: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Samples [start, stop) of the minibatch that all nodes share."""
        rows = [(3 * BATCH * step + i) % len(self.targets) for i in range(*part)]
        return self.inputs[rows], self.targets[rows]

    def oracle(
        self,
        allowed: Information,
        step: int = 0,
        node: int = 0,
        credit: Credit | None = None,
    ) -> GuardedOracle:
        """What one node may ask at one step."""
        return GuardedOracle(
            allowed,
            self.model,
            self.loss,
            lambda k: self.minibatch(k, node),
            step,
            pooled=self.pooled,
            common=lambda: [(self.inputs, self.targets)],
            credit=credit,
        )

    def credit(
        self, noise: ActivityNoise, params: Tensor, version: int
    ) -> tuple[Tensor, Tensor]:
        """(2·D,) mean losses of all samples under activity noise, (P,) estimate."""
        losses, total = ActivityModel(self.model, noise).credit(
            params, self.inputs, self.targets, self.loss, (SEED, version, 0)
        )
        return losses.double().mean(1), total / len(self.targets)

    def mean_loss(self, params: Tensor) -> float:
        """Mean loss over all samples."""
        logits = self.model.forward(params, self.inputs)
        return float(self.loss(logits, self.targets).double().mean())


def make_problem(name: str) -> Problem:
    """Return one of ``PROBLEMS``: 12 samples of four features and three classes."""
    rng = np.random.default_rng(11)
    inputs = torch.tensor(rng.standard_normal((12, 1, 2, 2)), dtype=torch.float32)
    targets = torch.tensor(rng.integers(0, 3, 12))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        modules = {
            "quadratic": Bowl(),
            "logistic": nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
            "mlp": nn.Sequential(
                nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)
            ),
        }
    loss = bowl_loss if name == "quadratic" else cross_entropy
    return Problem(modules[name], loss, inputs, targets)
