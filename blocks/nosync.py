"""NoSync (Isakov & Kinsy 2018): own models, drawn together by a growing pressure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import (
    Message,
    Node,
    Observation,
    Oracle,
    Payload,
    Scalars,
    step_rng,
)
from blocks.replica import (
    Replica,
    ReplicaSGD,
    check,
    due,
    mean_replica,
    moved,
    others,
    packed,
)
from blocks.team import Team

Attractor = Literal["mean", "best", "random", "loss-weighted"]
Pressure = Literal["none", "linear", "cosine"]

_PEER = 7  # the stream of `step_rng` that chooses a node's random peer
_MEMORY = 0.9  # share of the old value in the running mean of the training loss


@dataclass(frozen=True, slots=True, eq=False)
class NoSyncState:
    """One replica and its recent training loss."""

    node: int
    replica: Replica
    loss: Tensor  # (1,) running mean of the minibatch losses; infinite before the first


@dataclass(frozen=True, slots=True)
class NoSync(ReplicaSGD):
    """Replicas trained on their own, pulled towards an attractor now and then.

    Every ``exchange_every`` steps x_i ← x_i + λ_k (a_i − x_i), then and otherwise
    x_i ← x_i − α_k v_i with v_i ← μ v_i + ∇f_i(x_i). λ_k grows over the run, so that
    the replicas explore first and agree last. Nobody waits for anybody in
    asynchronous runs: a_i is made of the newest models that have arrived.

    Parameters
    ----------
    attractor : a_i, made of the newest models, the own one included: their "mean", the
        "best" (smallest recent training loss), "loss-weighted" (weights
        ∝ exp(−F_j / mean F)); or one "random" other model.
    pressure : λ_k at step k of S: "none" ``pull``, "linear" ``pull``·k/S, "cosine"
        ``pull``·½(1 − cos πk/S); ``pull`` in a run without a number of steps.
    pull : float — final λ in [0, 1]; with 0 nothing is sent.
    exchange_every : int — p ≥ 1 steps.
    step_size, momentum, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.

    Notes
    -----
    In the manner of the paper: independent models, different batches, a pressure
    instead of a barrier are its own; the form of the law, the attractors and the ramps
    are ours. The optimiser's memory stays local. Buffers are pulled as parameters are.
    Cost per step: 1 gradient evaluation; per exchange N − 1 models of 4 (P + B) bytes
    received ("random": one), and 4 bytes each where losses count.

    References
    ----------
    Isakov & Kinsy (2018). NoSync: Particle Swarm Inspired Distributed DNN Training.
    ICANN. doi 10.1007/978-3-030-01421-6_58.
    """

    kind: Literal["nosync"] = "nosync"
    attractor: Attractor = "mean"
    pressure: Pressure = "linear"
    pull: float = 1.0
    exchange_every: int = 8

    modes: ClassVar[frozenset[str]] = frozenset({"sync", "async"})
    paper: ClassVar[str] = (
        "Isakov & Kinsy 2018 (doi 10.1007/978-3-030-01421-6_58), in its manner"
    )
    defaults: ClassVar[Mapping[str, object]] = {"nodes": 4}

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        check("pull", self.pull, "in [0, 1]", 0 <= self.pull <= 1)
        check("exchange_every", self.exchange_every, "≥ 1", self.exchange_every >= 1)

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """All others at every p-th step, or one of them; otherwise nobody."""
        if self.pull == 0 or team.n_nodes == 1 or not due(step, self.exchange_every):
            return ()
        if self.attractor == "random":
            rng = step_rng(team.seed, node, step, purpose=_PEER)
            peer = int(rng.integers(team.n_nodes - 1))
            return (peer + (peer >= node),)
        return others(node, team)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[NoSyncState, Message]:
        """Start at ``params`` (P,), the same for all nodes."""
        loss = params.new_full((1,), math.inf)
        state = NoSyncState(node.index, self.begin(node, params), loss)
        return state, self._message(state)

    def step(
        self,
        state: NoSyncState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[NoSyncState, Message]:
        """Follow the pull if there is one, then one minibatch gradient."""
        replica = state.replica
        if due(observation.step, self.exchange_every) and observation.inbox:
            pull = self.pull * self._ramp(observation)
            replica = self._drawn(state, observation.inbox, pull)
        answer = oracle.gradient(replica.params, replica.buffers)
        replica = self.descend(replica, answer.gradient, answer.buffers, observation)
        loss = torch.full_like(state.loss, answer.loss)
        if bool(torch.isfinite(state.loss)):
            loss = _MEMORY * state.loss + (1 - _MEMORY) * loss
        new = NoSyncState(state.node, replica, loss)
        return new, self._message(new)

    def _ramp(self, observation: Observation) -> float:
        """λ_k / ``pull``."""
        if self.pressure == "none" or observation.n_steps <= 0:
            return 1.0
        progress = min(observation.step / observation.n_steps, 1.0)
        if self.pressure == "linear":
            return progress
        return 0.5 * (1.0 - math.cos(math.pi * progress))

    def _drawn(
        self, state: NoSyncState, inbox: Mapping[int, Payload], pull: float
    ) -> Replica:
        """Pull parameters and buffers: x + λ (a − x); x where there is no a."""
        old = state.replica
        models, weights = self._chosen(state, inbox)
        if not models:
            return old
        params, buffers = mean_replica(models, weights)
        if old.buffers is not None and buffers is not None:
            buffers = torch.lerp(old.buffers, buffers, pull)
        return moved(old, torch.lerp(old.params, params, pull), buffers)

    def _chosen(
        self, state: NoSyncState, inbox: Mapping[int, Payload]
    ) -> tuple[list[Payload], list[float] | None]:
        """Models whose mean is a_i, and their weights (None: equal)."""
        if self.attractor == "mean":
            return list(inbox.values()), None
        if self.attractor == "random":
            return [model for node, model in inbox.items() if node != state.node], None
        told = [(float(payload[-1]), payload[:-1]) for payload in inbox.values()]
        told = [(loss, model) for loss, model in told if math.isfinite(loss)]
        if self.attractor == "best":
            return [model for _, model in sorted(told, key=itemgetter(0))[:1]], None
        return [model for _, model in told], loss_weights([loss for loss, _ in told])

    def _message(self, state: NoSyncState) -> Message:
        replica = state.replica
        payload: Payload = ()
        if self.pull > 0:
            payload = packed(replica.params, replica.buffers)
            if self.attractor in ("best", "loss-weighted"):
                payload = (*payload, state.loss)
        return Message(replica.params, buffers=replica.buffers, payload=payload)


def loss_weights(losses: list[float]) -> list[float]:
    """Weights ∝ exp(−F_j / mean F) that sum to 1; equal ones if that mean is 0."""
    scale = math.fsum(losses) / max(len(losses), 1) or 1.0
    shares = [math.exp((min(losses) - loss) / abs(scale)) for loss in losses]
    return [share / math.fsum(shares) for share in shares]
