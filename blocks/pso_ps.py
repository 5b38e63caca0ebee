"""PSO-PS (Ye, Han, Sun, Lv 2020): synchronisation by particle swarm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import (
    Combine,
    Information,
    Message,
    Node,
    Observation,
    Oracle,
    Payload,
    Scalars,
)
from blocks.optimisers import Momentum
from blocks.replica import Replica, ReplicaSGD, check, due, moved, packed
from blocks.team import Team


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Weights and their loss on the subset that all nodes share."""

    params: Tensor  # (P,)
    buffers: Tensor | None  # (B,)
    loss: float  # infinite if it was not finite


@dataclass(frozen=True, slots=True, eq=False)
class PSOPSState:
    """A particle: where it is, how it moves, what it and the swarm have found."""

    node: int
    replica: Replica  # x_i
    velocity: Tensor  # (P,) v_i, of the swarm; the optimiser has its own
    personal: Found  # p_i
    best: Found  # g, the same on all nodes
    fresh: Found | None = None  # x_i with its loss, where it has just been measured

    @property
    def answer(self) -> Found:
        """g, or this node's own weights where they are better."""
        if self.fresh is not None and self.fresh.loss < self.best.loss:
            return self.fresh
        return self.best


@dataclass(frozen=True, slots=True)
class PSOPS(ReplicaSGD):
    """Replicas trained by SGD on their own that meet as particles of a swarm.

    After every ``exchange_every`` steps each node measures the loss F_i of its weights
    on one fixed subset, the personal best p_i and the global best g are updated, and
    v_i ← ω v_i + c1 r1 (p_i − x_i) + c2 r2 (g − x_i), x_i ← x_i + v_i with
    r1, r2 ~ U(0, 1), one number each. A particle that is not finite restarts from g,
    at rest. The answer is g.

    Parameters
    ----------
    inertia : float — ω ≥ 0.
    cognitive : float — c1 ≥ 0, pull of the own best.
    social : float — c2 ≥ 0, pull of the swarm's best.
    exchange_every : int — n ≥ 1 steps between two meetings.
    step_size, momentum, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.

    Notes
    -----
    In the manner of the paper: SGD between synchronisations of n minibatches, weights
    and training loss as a particle's attributes are its own; the law of motion is
    standard PSO, the common subset, the restart and the answer are ours. The
    optimiser's memory and the buffers stay with the particle. Cost per step: 1
    gradient evaluation; per meeting 1 loss on ``loss_samples`` samples, 16 bytes to
    everybody (at every step), and the weights of the winner alone, if g improved. The
    last step measures too.

    References
    ----------
    Ye, Han, Sun, Lv (2020). PSO-PS: Parameter Synchronization with Particle Swarm
    Optimization for Distributed Training of Deep Neural Networks. IJCNN, arXiv
    2009.03816.
    """

    kind: Literal["pso-ps"] = "pso-ps"
    step_size: float = 0.02
    inertia: float = 0.0
    cognitive: float = 0.08
    social: float = 1.0
    exchange_every: int = 100

    information: ClassVar[Information] = (
        Information.GRADIENT_ORACLE | Information.LOSS_ORACLE | Information.NEIGHBOURS
    )
    combine: ClassVar[Combine] = Combine.BEST
    tells: ClassVar[bool] = True
    paper: ClassVar[str] = "Ye et al. 2020 (arXiv 2009.03816), in its manner"
    defaults: ClassVar[Mapping[str, Any]] = {"nodes": 4, "loss_samples": 1000}

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        for name in ("inertia", "cognitive", "social"):
            value = getattr(self, name)
            check(name, value, "finite and ≥ 0", 0 <= value < math.inf)
        check("exchange_every", self.exchange_every, "≥ 1", self.exchange_every >= 1)

    def extra_samples(self, n_loss: int) -> tuple[int, float]:
        """Samples of a node beside its gradients: once, and per step on average."""
        return 2 * n_loss, n_loss / self.exchange_every

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """The node with the new best weights, at a meeting that has one."""
        winner = self._winner(step, scalars)
        return () if winner is None or winner == node else (winner,)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[PSOPSState, Message]:
        """Start at ``params`` (P,), the same for all nodes: the first g."""
        replica = self.begin(node, params)
        first = measured(replica, oracle)
        still = torch.zeros_like(params)
        state = PSOPSState(node.index, replica, still, first, first)
        return state, self._message(state)

    def step(
        self,
        state: PSOPSState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[PSOPSState, Message]:
        """Move with the swarm if it meets, then one minibatch gradient."""
        step = observation.step
        if due(step, self.exchange_every):
            state = self._flown(self._informed(state, observation), rng)
        replica = state.replica
        answer = oracle.gradient(replica.params, replica.buffers)
        replica = self.descend(replica, answer.gradient, answer.buffers, observation)
        state = replace(state, replica=replica, fresh=None)
        if due(step + 1, self.exchange_every) or observation.last:
            fresh = measured(replica, oracle)
            better = fresh.loss < state.personal.loss
            personal = fresh if better else state.personal
            state = replace(state, fresh=fresh, personal=personal)
        return state, self._message(state)

    def _winner(self, step: int, scalars: Scalars) -> int | None:
        """The first node with the smallest loss, if it is smaller than that of g."""
        if not due(step, self.exchange_every):
            return None
        losses = [known for known, _ in scalars]
        winner = losses.index(min(losses))
        return winner if losses[winner] < scalars[winner][1] else None

    def _informed(self, state: PSOPSState, observation: Observation) -> PSOPSState:
        """Return the state with the new g."""
        winner = self._winner(observation.step, observation.scalars)
        if winner is None:
            return state
        if winner == state.node:
            return replace(state, best=state.answer)
        params, *buffers = observation.inbox[winner]
        loss = observation.scalars[winner][0]
        return replace(state, best=Found(params, buffers[0] if buffers else None, loss))

    def _flown(self, state: PSOPSState, rng: np.random.Generator) -> PSOPSState:
        """One move of the swarm; a particle that is not finite restarts from g."""
        r1, r2 = rng.random(), rng.random()
        x = state.replica.params
        velocity = (
            self.inertia * state.velocity
            + self.cognitive * r1 * (state.personal.params - x)
            + self.social * r2 * (state.best.params - x)
        )
        params, buffers = x + velocity, state.replica.buffers
        if all(bool(torch.isfinite(t).all()) for t in packed(params, buffers)):
            replica = moved(state.replica, params, buffers)
            return replace(state, replica=replica, velocity=velocity)
        best = state.best
        replica = Replica(best.params, best.buffers, Momentum.zeros(x))
        return replace(state, replica=replica, velocity=torch.zeros_like(x))

    def _message(self, state: PSOPSState) -> Message:
        answer, fresh = state.answer, state.fresh
        payload: Payload = ()
        if fresh is not None and answer is fresh:
            payload = packed(fresh.params, fresh.buffers)
        return Message(
            answer.params,
            buffers=answer.buffers,
            payload=payload,
            scalars=(answer.loss, state.best.loss),
        )


def measured(replica: Replica, oracle: Oracle) -> Found:
    """The replica's weights with their loss; one that is not finite is infinite."""
    loss = oracle.common_loss(replica.params, replica.buffers)
    if not math.isfinite(loss):
        loss = math.inf
    return Found(replica.params, replica.buffers, loss)
