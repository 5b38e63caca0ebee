"""Small problems, and a ten-line harness that plays an algorithm on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from blocks.algorithm import LossRecord, Message, Node, Observation, step_rng
from blocks.forward import FlatModel
from blocks.oracle import GuardedOracle
from blocks.partition import Block, join, partition, split
from blocks.probes import directions, probe_points

SEED = 3


class Bowl(nn.Module):
    """Answers its six parameters for every sample: with ``bowl_loss``, a quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.linspace(-1.0, 1.0, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.centre * torch.ones((len(x), 1))


def bowl_loss(values: Tensor, targets: Tensor) -> Tensor:
    scales = torch.linspace(1.0, 3.0, values.shape[1])
    return (scales * (values - 0.5).square()).sum(1) + 0.0 * targets


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class Problem:
    """A model, a per-sample loss, and 12 samples."""

    module: nn.Module
    loss: Any
    inputs: Tensor
    targets: Tensor

    @cached_property
    def model(self) -> FlatModel:
        return FlatModel(self.module)

    def minibatch(self, step: int) -> tuple[Tensor, Tensor]:
        rows = [(4 * step + i) % len(self.targets) for i in range(4)]
        return self.inputs[rows], self.targets[rows]

    def oracle(self, allowed: Any, step: int = 0) -> GuardedOracle:
        return GuardedOracle(allowed, self.model, self.loss, self.minibatch, step)

    def mean_loss(self, params: Tensor) -> float:
        logits = self.model.forward(params, self.inputs)
        return float(self.loss(logits, self.targets).double().mean())


def make_problem(name: str) -> Problem:
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


@dataclass(frozen=True)
class Moment:
    """Everything that one step is given."""

    node: int
    state: Any
    observation: Observation
    seed: int = SEED


@dataclass
class Session:
    """One synchronous run of an algorithm on a problem."""

    algorithm: Any
    problem: Problem
    blocks: tuple[Block, ...]
    states: list[Any]
    messages: list[Message]
    step: int = 0

    @classmethod
    def start(cls, algorithm: Any, problem: Problem, n_blocks: int = 2) -> Session:
        params = problem.model.initial_params()
        blocks: tuple[Block, ...] = ()
        if algorithm.blockwise:
            blocks = partition(f"by_size:{n_blocks}", problem.module)
        parts = split(params, blocks) if blocks else [params]
        session = cls(algorithm, problem, blocks, [], [])
        for index, part in enumerate(parts):
            block = blocks[index] if blocks else None
            node = Node(index, len(parts), block, SEED)
            oracle = problem.oracle(algorithm.information)
            rng = step_rng(SEED, index, -1)
            state, message = algorithm.init(node, part, oracle, rng)
            session.states.append(state)
            session.messages.append(message)
        return session

    def join(self, parts: list[Tensor]) -> Tensor:
        n_params = self.problem.model.n_params
        return join(parts, self.blocks, n_params) if self.blocks else parts[0]

    def solution_loss(self) -> float:
        return self.problem.mean_loss(self.join([m.solution for m in self.messages]))

    def record(self) -> LossRecord:
        """Score the joined points, or the joint probes around them."""
        n_probes = self.algorithm.n_probes
        rows = [m.point[None] for m in self.messages]
        if n_probes > 1:
            kind = self.algorithm.probe_kind
            rows = [
                probe_points(
                    m.point,
                    m.probe_std,
                    directions(
                        SEED, i, self.step, n_probes // 2, m.point.numel(), kind
                    ),
                )
                for i, m in enumerate(self.messages)
            ]
        losses = [
            self.problem.mean_loss(self.join([r[k] for r in rows]))
            for k in range(n_probes)
        ]
        steps = (self.step,) * len(self.messages)
        return LossRecord("run", self.step, tuple(losses), steps)

    def moments(self, n_steps: int = 100) -> list[Moment]:
        """What every node's next step is given."""
        record = self.record() if self.algorithm.scored else None
        allowed = self.algorithm.information
        observation = Observation(self.step, n_steps, allowed, record)
        return [Moment(i, state, observation) for i, state in enumerate(self.states)]

    def take(self, moment: Moment, algorithm: Any = None) -> tuple[Any, Message]:
        """Take one step; the session itself stays as it is."""
        algorithm = algorithm or self.algorithm
        step = moment.observation.step
        oracle = self.problem.oracle(algorithm.information, step)
        rng = step_rng(moment.seed, moment.node, step)
        return algorithm.step(moment.state, moment.observation, oracle, rng)

    def advance(self, n_rounds: int, n_steps: int = 100) -> Session:
        """Run some rounds."""
        for _ in range(n_rounds):
            for moment in self.moments(n_steps):
                answer = self.take(moment)
                self.states[moment.node], self.messages[moment.node] = answer
            self.step += 1
        return self


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of nested dataclasses, tuples and mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    else:
        yield path, value


def bits(value: Any) -> list[tuple[str, Any]]:
    """Every leaf with its exact bits: equal lists mean equal values, NaN included."""
    found: list[tuple[str, Any]] = []
    for path, leaf in leaves(value):
        if isinstance(leaf, Tensor):
            content = leaf.detach().contiguous().numpy().tobytes()
            found.append((path, (str(leaf.dtype), tuple(leaf.shape), content)))
        elif isinstance(leaf, np.ndarray):
            found.append((path, (str(leaf.dtype), leaf.shape, leaf.tobytes())))
        else:
            found.append((path, repr(leaf)))
    return found


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
