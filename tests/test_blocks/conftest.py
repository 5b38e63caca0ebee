"""Fixtures: small problems, a harness that plays an algorithm on one, exact bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blocks.algorithm import Gradient
from blocks.checking import bits, leaves
from blocks.rehearsal import Session, make_problem


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """One thread, as runs have: small products are slower on several."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Double:
    """A small network in float64, for limits that hold to 1e-10.

    Every one of ``n_nodes`` nodes has minibatches of 4 samples of its own; all of them
    together are the minibatch that nodes share, and everybody's if ``together``.
    """

    n_nodes: int
    together: bool = False

    @property
    def model(self) -> Double:
        return self

    def initial_params(self) -> Tensor:
        return torch.linspace(-0.9, 1.1, 15, dtype=torch.float64).cos()

    def rows(self, step: int, node: int) -> list[int]:
        own = [(4 * step + 13 * node + i) % 60 for i in range(4)]
        return own if not self.together else self.shared(step)

    def shared(self, step: int) -> list[int]:
        alone = Double(self.n_nodes)
        return [r for node in range(self.n_nodes) for r in alone.rows(step, node)]

    def losses(self, params: Tensor, rows: list[int]) -> Tensor:
        rng = np.random.default_rng(2)
        inputs = torch.tensor(rng.standard_normal((60, 4)))[rows]
        targets = torch.tensor(rng.standard_normal(60))[rows]
        hidden = torch.tanh(inputs @ params[:12].reshape(4, 3))
        return (hidden @ params[12:] - targets).square()

    def mean_loss(self, params: Tensor) -> float:
        return float(self.losses(params, list(range(60))).mean())

    def oracle(self, allowed: Any, step: int = 0, node: int = 0) -> DoubleOracle:
        return DoubleOracle(self, step, node)


@dataclass(frozen=True)
class DoubleOracle:
    problem: Double
    step: int
    node: int

    def gradient(self, params, buffers, minibatch=None, part=None) -> Gradient:
        k = self.step if minibatch is None else minibatch
        rows = self.problem.rows(k, self.node)
        if part is not None:
            rows = self.problem.shared(k)[part[0] : part[1]]
        at = params.clone().requires_grad_()
        with torch.enable_grad():
            loss = self.problem.losses(at, rows).mean()
        return Gradient(loss.item(), torch.autograd.grad(loss, at)[0], buffers)


@pytest.fixture(scope="session")
def double():
    """Return the class of small float64 problems."""
    return Double


@pytest.fixture(scope="session")
def problem():
    """Return the function that makes a problem: quadratic, logistic or mlp."""
    return make_problem


@pytest.fixture(scope="session")
def session():
    """Return the function that starts an algorithm on a problem."""
    return Session.start


@pytest.fixture(scope="session")
def tensors():
    """Return the function that lists (path, tensor) of anything nested."""
    return lambda value: [(p, x) for p, x in leaves(value) if isinstance(x, Tensor)]


@pytest.fixture(scope="session")
def bits_of():
    """Return the function that takes anything nested to its exact bits."""
    return bits
