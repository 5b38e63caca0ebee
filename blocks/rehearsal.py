"""A small harness that plays an algorithm on a small problem (``blocks.problems``).

For tests, here and of other people's algorithms: one process, no clock, no data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from blocks.joint_probes import draw_probes, matrices_of
from blocks.layout import Layout
from blocks.partition import Block, join, partition, split
from blocks.problems import BATCH, PROBLEMS, SEED, Problem, make_problem
from blocks.team import Team, inbox_of, listens, received_bytes

__all__ = ["BATCH", "PROBLEMS", "SEED", "Moment", "Problem", "Session", "make_problem"]


@dataclass(frozen=True)
class Moment:
    """Everything that one step is given."""

    node: int
    state: Any
    observation: Observation
    seed: int = SEED
    scored: Tensor | None = None  # (P,) what the record scored, if perturbed activities


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

    @property
    def _matrices(self) -> tuple[np.ndarray, ...]:
        if not self.blocks:
            return ()
        layout = Layout.from_module(self.problem.module)
        return matrices_of(self.algorithm, self.blocks, layout)

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
            whole_layers = hasattr(algorithm, "noise_settings")
            spec = "by_layer" if whole_layers else f"by_size:{n_blocks}"
            blocks = partition(spec, problem.module)
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
            rows = session._matrices[index] if blocks else None
            node = Node(index, len(parts), block, SEED, team=team, matrices=rows)
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
        steps = (self.step,) * len(self.messages)
        noise = getattr(self.algorithm, "noise_settings", None)
        if noise is not None:
            means, _ = self.problem.credit(noise, self._scored(), self.step)
            return LossRecord("run", self.step, tuple(means.tolist()), steps)
        if n_probes == 1:
            points = self._scored()[None]
        else:
            points = draw_probes(
                self.algorithm,
                SEED,
                dict(enumerate(self.messages)),
                steps,
                self.blocks,
                self._matrices,
                self.problem.model.n_params,
            ).points()
        losses = [self.problem.mean_loss(point) for point in points]
        return LossRecord("run", self.step, tuple(losses), steps)

    def _scored(self) -> Tensor:
        return self.join([m.point for m in self.messages])

    def moments(self, n_steps: int = 100) -> list[Moment]:
        """What every node's next step is given."""
        noise = getattr(self.algorithm, "noise_settings", None)
        scored = None if noise is None else self._scored()
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
            found.append(Moment(node, state, observation, scored=scored))
        return found

    def take(self, moment: Moment, algorithm: Any = None) -> tuple[Any, Message]:
        """Take one step; the session itself stays as it is."""
        algorithm = algorithm or self.algorithm
        step = moment.observation.step
        oracle = self.oracle(moment, algorithm)
        rng = step_rng(moment.seed, moment.node, step)
        answer: tuple[Any, Message] = algorithm.step(
            moment.state, moment.observation, oracle, rng
        )
        return answer

    def oracle(self, moment: Moment, algorithm: Any = None) -> Any:
        """What one step may ask."""
        algorithm = algorithm or self.algorithm
        asked = algorithm.information, moment.observation.step, moment.node
        scored = moment.scored
        if scored is None:
            return self.problem.oracle(*asked)

        def credit() -> Tensor:
            version = moment.observation.record.version
            noise = algorithm.noise_settings
            _, estimate = self.problem.credit(noise, scored, version)
            return split(estimate, self.blocks)[moment.node]

        return self.problem.oracle(*asked, credit=credit)

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
