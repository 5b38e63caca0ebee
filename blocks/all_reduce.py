"""Synchronous data-parallel SGD: every step all nodes average their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.algorithm import Message, Node, Observation, Oracle, Payload, Scalars
from blocks.replica import (
    Replica,
    ReplicaSGD,
    ahead,
    first_gradient,
    heard,
    mean_replica,
    others,
    team_of,
)
from blocks.team import Team


@dataclass(frozen=True, slots=True, eq=False)
class AllReduceState:
    """A replica, the gradient it has taken there, and everybody's share."""

    replica: Replica
    payload: Payload  # (P,) gradient at ``replica``, (B,) buffers after its pass
    weights: tuple[float, ...]  # n_i/n by node


@dataclass(frozen=True, slots=True)
class AllReduceSGD(ReplicaSGD):
    """SGD with momentum on the mean gradient of all nodes: v ← μ v + ḡ, θ ← θ − α v.

    ḡ = Σ_i (n_i/n) g_i with n_i the samples of node i, each g_i on ``batch_size`` of
    its own samples. All replicas stay the same bit for bit.

    Parameters
    ----------
    step_size, momentum, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.

    Notes
    -----
    Buffers (batch-norm statistics) are normalised over each node's own minibatch and
    averaged with the same weights. Cost per step: 1 gradient evaluation a node; P (and
    B) numbers from every other node.

    References
    ----------
    Goyal et al. (2017). Accurate, Large Minibatch SGD. arXiv 1706.02677. Section 3.
    """

    kind: Literal["all-reduce-sgd"] = "all-reduce-sgd"

    paper: ClassVar[str] = "Synchronous SGD, as in Goyal et al. 2017 (arXiv 1706.02677)"

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """All others, at every step."""
        return others(node, team)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[AllReduceState, Message]:
        """Start at ``params`` (P,) and take the gradient of the first minibatch."""
        counts = team_of(node).n_samples
        weights = tuple(count / sum(counts) for count in counts)
        replica = self.begin(node, params)
        return _answer(replica, first_gradient(oracle, replica), weights)

    def step(
        self,
        state: AllReduceState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[AllReduceState, Message]:
        """Fold everybody's gradients and take the next one."""
        gradient, buffers = mean_replica(
            heard(observation, state.payload), list(state.weights)
        )
        replica = self.descend(state.replica, gradient, buffers, observation)
        return _answer(replica, ahead(oracle, replica, observation), state.weights)


def _answer(
    replica: Replica, payload: Payload, weights: tuple[float, ...]
) -> tuple[AllReduceState, Message]:
    message = Message(replica.params, buffers=replica.buffers, payload=payload)
    return AllReduceState(replica, payload, weights), message
