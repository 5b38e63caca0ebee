"""Node-based communication (Moreno-Álvarez, Paoletti, Cavallaro, Haut 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import Message, Node, Observation, Oracle, Payload, Scalars
from blocks.replica import (
    Replica,
    ReplicaSGD,
    ahead,
    check,
    due,
    first_gradient,
    mean,
    mean_replica,
    moved,
    others,
    team_of,
)
from blocks.team import Team


@dataclass(frozen=True, slots=True, eq=False)
class NodeBasedState:
    """A replica, what it has told, and where the replicas are."""

    replica: Replica
    payload: Payload  # (P,) gradient, (B,) buffers after its pass, (P,) coasting point
    index: int
    team: Team


@dataclass(frozen=True, slots=True)
class NodeBased(ReplicaSGD):
    """Gradients averaged inside a machine, parameters between machines now and then.

    With R_m replicas on machine m and R in all, at every step v_m ← μ v_m + ḡ_m,
    θ_m ← θ_m − α v_m, where ḡ_m is the mean gradient of the machine's replicas; after
    the steps K', 2K', … all continue from θ̄ = Σ_m (R_m/R) θ_m.

    A step has one exchange, so the two averages of an exchange step are taken at once:
    θ̄ is Σ_m (R_m/R) c_m − α·(mean gradient of all R), with c_m where θ_m would coast to
    without a gradient. Every replica tells its gradient, the first of a machine c_m.

    Parameters
    ----------
    step_size, momentum, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.
    exchange_every : int — K' ≥ 0, steps between exchanges of the machines; 0 = one
        epoch (of the replica with the fewest samples).

    Notes
    -----
    Differs from the paper in: all replicas count alike (a machine counts R_m/R); at an
    exchange a replica receives R − 1 gradients and a point for every other machine,
    where two exchanges in a row would take R_m − 1 gradients and M − 1 points. v_m
    stays on its machine. Cost per step: 1 gradient evaluation a node, R_m − 1 vectors
    of P (and B) numbers received.

    References
    ----------
    Moreno-Álvarez et al. (2023). IEEE TNNLS. doi 10.1109/TNNLS.2023.3309735.
    """

    kind: Literal["node-based"] = "node-based"
    exchange_every: int = 0

    paper: ClassVar[str] = (
        "Moreno-Álvarez, Paoletti, Cavallaro, Haut 2023 (10.1109/TNNLS.2023.3309735)"
    )
    defaults: ClassVar[Mapping[str, Any]] = {"nodes": 4, "machines": 2}

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        period = self.exchange_every
        check("exchange_every", period, "at least 0 (0: one epoch)", period >= 0)

    def exchanges(self, step: int, team: Team) -> bool:
        """Whether the machines average their parameters in step ``step`` (from 0)."""
        period = self.exchange_every or team.steps_per_epoch(self.batch_size)
        return len(set(team.machines)) > 1 and due(step + 1, period)

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """The replicas of the same machine; all others where machines exchange."""
        if self.exchanges(step, team):
            return others(node, team)
        here = team.machines[node]
        return tuple(j for j in others(node, team) if team.machines[j] == here)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[NodeBasedState, Message]:
        """Start at ``params`` (P,) and take the gradient of the first minibatch."""
        replica, team = self.begin(node, params), team_of(node)
        payload = first_gradient(oracle, replica)
        if self._speaks(node.index, team, 0):
            first = Observation(0, 0, self.information)
            payload = (*payload, self._coasting(replica, first))
        return _answer(NodeBasedState(replica, payload, node.index, team))

    def step(
        self,
        state: NodeBasedState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[NodeBasedState, Message]:
        """Fold the machine's gradients, or everybody's; take the next one."""
        replica, team, k = state.replica, state.team, observation.step
        check("observation.step", k, "a planned step", bool(state.payload))
        told = dict(observation.inbox) or {state.index: state.payload}
        speakers = _speakers(team) if self.exchanges(k, team) else {}
        answers = {j: p[:-1] if j in speakers else p for j, p in told.items()}
        here = team.machines[state.index]
        mates = [answers[j] for j in answers if team.machines[j] == here]
        replica = self.descend(replica, *mean_replica(mates), observation)
        if speakers:
            gradient, buffers = mean_replica(list(answers.values()))
            coasting = mean(
                [told[j][-1] for j in speakers],
                [team.machines.count(m) / team.n_nodes for m in speakers.values()],
            )
            alpha = self.alpha(k, observation)
            replica = moved(replica, coasting - alpha * gradient, buffers)
        payload = ahead(oracle, replica, observation)
        if payload and self._speaks(state.index, team, k + 1):
            following = replace(observation, step=k + 1)
            payload = (*payload, self._coasting(replica, following))
        return _answer(NodeBasedState(replica, payload, state.index, team))

    def _speaks(self, node: int, team: Team, step: int) -> bool:
        """Whether ``node`` tells its machine's coasting point for step ``step``."""
        return self.exchanges(step, team) and node in _speakers(team)

    def _coasting(self, replica: Replica, observation: Observation) -> Tensor:
        """Return c (P,): where a step without a gradient would lead."""
        nothing = torch.zeros_like(replica.params)
        return self.descend(replica, nothing, None, observation).params


def _speakers(team: Team) -> dict[int, int]:
    """First replica of every machine → the machine, in node order."""
    firsts = {team.machines.index(m): m for m in set(team.machines)}
    return dict(sorted(firsts.items()))


def _answer(state: NodeBasedState) -> tuple[NodeBasedState, Message]:
    replica = state.replica
    return state, Message(
        replica.params, buffers=replica.buffers, payload=state.payload
    )
