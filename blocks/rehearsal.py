"""Small problems, and a small harness that plays an algorithm on one of them.

For tests, here and of other people's algorithms: one process, no clock, no data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from blocks.algorithm import (
    SERVER,
    Combine,
    Information,
    LossRecord,
    Message,
    Node,
    Observation,
    step_rng,
)
from blocks.forward import FlatModel
from blocks.oracle import GuardedOracle
from blocks.partition import Block, join, partition, split
from blocks.probes import directions, probe_points
from blocks.team import Team, inbox_of, listens, received_bytes

SEED = 3
BATCH = 4  # samples of a minibatch
PROBLEMS = ("quadratic", "logistic", "mlp")


class Bowl(nn.Module):
    """Answers its six parameters for every sample: with ``bowl_loss``, a quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.linspace(-1.0, 1.0, 6))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 6), the same row for every sample."""
        return self.centre * torch.ones((len(x), 1))


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
        self, allowed: Information, step: int = 0, node: int = 0
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
        )

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


@dataclass(frozen=True)
class Moment:
    """Everything that one step is given."""

    node: int
    state: Any
    observation: Observation
    seed: int = SEED


@dataclass
class Session:
    """One synchronous run of an algorithm on a problem.

    A served method's nodes take turns, each folding before the next one looks.
    """

    algorithm: Any
    problem: Any  # a Problem, or what has its ``model``, ``oracle`` and ``mean_loss``
    blocks: tuple[Block, ...]
    team: Team | None
    states: list[Any] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    server: Any = None
    step: int = 0
    bytes_moved: int = 0

    @classmethod
    def start(
        cls,
        algorithm: Any,
        problem: Any,
        n_blocks: int = 2,
        n_nodes: int | None = None,
        machines: int = 1,
        params: Tensor | None = None,
    ) -> Session:
        """Begin: ``n_blocks`` blocks, or ``n_nodes`` replicas of a replica method."""
        if params is None:
            params = problem.model.initial_params()
        blocks: tuple[Block, ...] = ()
        parts: Sequence[Tensor]
        team = None
        if algorithm.blockwise:
            blocks = partition(f"by_size:{n_blocks}", problem.module)
            parts = split(params, blocks)
        else:
            n = n_nodes or min(algorithm.defaults.get("nodes", 1), 3)
            team = Team.of(n, 12, SEED, machines)
            parts = [params] * n
        session = cls(algorithm, problem, blocks, team)
        if getattr(algorithm, "served", False):
            session.server = algorithm.open(params, None, team)
        for index, part in enumerate(parts):
            block = blocks[index] if blocks else None
            node = Node(index, len(parts), block, SEED, team=team)
            oracle = problem.oracle(algorithm.information, 0, index)
            rng = step_rng(SEED, index, -1)
            state, message = algorithm.init(node, part, oracle, rng)
            session.states.append(state)
            session.messages.append(message)
        return session

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """(P,) what the nodes' parts stand for together."""
        if self.blocks:
            return join(parts, self.blocks, self.problem.model.n_params)
        if self.algorithm.combine is Combine.BEST:
            losses = [m.scalars[0] for m in self.messages]
            return parts[int(np.nanargmin(losses))]
        total = torch.zeros_like(parts[0])
        for part in parts:
            total += part
        return total / len(parts)

    def solution(self) -> Tensor:
        """(P,) the parameters that the run stands for now."""
        if self.server is not None:
            view: Message = self.algorithm.view(self.server)
            return view.solution
        return self.join([m.solution for m in self.messages])

    def solution_loss(self) -> float:
        """Mean loss of ``solution`` over all samples."""
        return float(self.problem.mean_loss(self.solution()))

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
        payloads = {node: m.payload for node, m in enumerate(self.messages)}
        scalars = tuple(m.scalars for m in self.messages)
        found = []
        for node, state in enumerate(self.states):
            inbox: dict[int, Any] = {}
            if self.server is not None:
                inbox = {SERVER: self.algorithm.view(self.server).payload}
            elif self.team is not None and allowed & Information.NEIGHBOURS:
                heard = listens(self.algorithm, node, self.team, self.step, scalars)
                inbox = inbox_of(node, heard, payloads)
                self.bytes_moved += received_bytes(node, heard, payloads, scalars)
            observation = Observation(
                self.step, n_steps, allowed, record, inbox, scalars
            )
            found.append(Moment(node, state, observation))
        return found

    def take(self, moment: Moment, algorithm: Any = None) -> tuple[Any, Message]:
        """Take one step; the session itself stays as it is."""
        algorithm = algorithm or self.algorithm
        step = moment.observation.step
        oracle = self.problem.oracle(algorithm.information, step, moment.node)
        rng = step_rng(moment.seed, moment.node, step)
        answer: tuple[Any, Message] = algorithm.step(
            moment.state, moment.observation, oracle, rng
        )
        return answer

    def advance(self, n_rounds: int, n_steps: int = 100) -> Session:
        """Run some rounds."""
        for _ in range(n_rounds):
            for moment in self._turns(n_steps):
                answer = self.take(moment)
                self.states[moment.node], self.messages[moment.node] = answer
                if self.server is not None:
                    self.server = self.algorithm.serve(
                        self.server, moment.node, answer[1], n_steps
                    )
            self.step += 1
        return self

    def _turns(self, n_steps: int) -> Iterator[Moment]:
        if self.server is None:
            yield from self.moments(n_steps)
            return
        for node in range(len(self.states)):
            yield self.moments(n_steps)[node]
