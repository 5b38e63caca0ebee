"""Local SGD (McDonald et al. 2010; Stich 2019): parameters averaged now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.algorithm import Message, Node, Observation, Oracle, Scalars
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


@dataclass(frozen=True, slots=True)
class LocalSGD(ReplicaSGD):
    """Every node trains alone; after every p steps all continue from the mean.

    θ_i ← θ_i − α v_i with v_i ← μ v_i + g_i(θ_i); after the steps p, 2p, … θ_i ← the
    mean of all θ_j, folded at the start of the step that follows.

    Parameters
    ----------
    step_size, momentum, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.
    exchange_every : int — p ≥ 1, steps between two exchanges.

    Notes
    -----
    All nodes count alike, however many samples they have. v_i stays where it is and is
    not averaged; buffers are. Cost per step: 1 gradient evaluation a node; at an
    exchange P (and B) numbers from every other node.

    References
    ----------
    McDonald, Hall, Mann (2010). Distributed training strategies for the structured
    perceptron. NAACL. Stich (2019). Local SGD converges fast and communicates little.
    ICLR, arXiv 1805.09767. Algorithm 1.
    """

    kind: Literal["local-sgd"] = "local-sgd"
    exchange_every: int = 10

    paper: ClassVar[str] = "McDonald et al. 2010; Stich 2019 (arXiv 1805.09767)"

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        period = self.exchange_every
        check("exchange_every", period, "at least 1", period >= 1)

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """All others at the steps p, 2p, …; nobody in between."""
        return others(node, team) if due(step, self.exchange_every) else ()

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[Replica, Message]:
        """Start at ``params`` (P,) with an optimiser that remembers nothing."""
        replica = self.begin(node, params)
        return replica, Message(replica.params, buffers=replica.buffers)

    def step(
        self,
        state: Replica,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[Replica, Message]:
        """Continue from the mean where there was an exchange; then one own step."""
        if observation.inbox:
            state = moved(state, *mean_replica(list(observation.inbox.values())))
        answer = oracle.gradient(state.params, state.buffers)
        new = self.descend(state, answer.gradient, answer.buffers, observation)
        listened = due(observation.step + 1, self.exchange_every)
        payload = packed(new.params, new.buffers) if listened else ()
        return new, Message(new.params, buffers=new.buffers, payload=payload)
