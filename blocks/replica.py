"""What gradient methods of replicas share: settings, schedule, momentum, local step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from blocks.algorithm import (
    Combine,
    Information,
    Node,
    Observation,
    Oracle,
    Payload,
)
from blocks.optimisers import Momentum, decayed
from blocks.team import Team


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """One replica of the network and what its optimiser remembers."""

    params: Tensor  # (P,) θ
    buffers: Tensor | None  # (B,) normalisation statistics
    optimiser: Momentum


@dataclass(frozen=True, slots=True)
class ReplicaSGD:
    """Base of methods whose nodes are replicas trained by SGD with momentum.

    A method adds its ``kind``, ``paper``, ``init`` and ``step``, and ``senders`` if its
    nodes talk (``blocks.team``).

    Parameters
    ----------
    step_size : float — α > 0 at the first step, decayed by a cosine to
        ``final_fraction · α``.
    momentum : float — μ in [0, 1).
    weight_decay : float — λ ≥ 0, coupled: g ← g + λ θ.
    batch_size : int — samples of one node's step.
    """

    step_size: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 32
    final_fraction: float = 0.0

    information: ClassVar[Information] = (
        Information.GRADIENT_ORACLE | Information.NEIGHBOURS
    )
    combine: ClassVar[Combine] = Combine.MEAN
    modes: ClassVar[frozenset[str]] = frozenset({"sync"})
    blockwise: ClassVar[bool] = False
    scored: ClassVar[bool] = False
    data: ClassVar[str] = "shard"
    tells: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {"nodes": 4}
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check("step_size", self.step_size, "positive", 0 < self.step_size < math.inf)
        check("momentum", self.momentum, "in [0, 1)", 0 <= self.momentum < 1)
        check("weight_decay", self.weight_decay, "≥ 0", self.weight_decay >= 0)
        check("batch_size", self.batch_size, "≥ 1", self.batch_size >= 1)
        in_unit = 0 <= self.final_fraction <= 1
        check("final_fraction", self.final_fraction, "in [0, 1]", in_unit)

    @property
    def n_probes(self) -> int:
        """No probes."""
        return 1

    def begin(self, node: Node, params: Tensor) -> Replica:
        """Replica at ``params`` with an optimiser that remembers nothing."""
        return Replica(params.clone(), node.buffers, Momentum.zeros(params))

    def descend(
        self,
        replica: Replica,
        gradient: Tensor,
        buffers: Tensor | None,
        observation: Observation,
    ) -> Replica:
        """θ ← θ − α_k·v with v ← μ v + g + λ θ; ``buffers`` are the new ones."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * replica.params
        optimiser, direction = replica.optimiser.step(gradient, self.momentum)
        params = replica.params - self.alpha(observation.step, observation) * direction
        return Replica(params, buffers, optimiser)

    def alpha(self, step: int, observation: Observation) -> float:
        """α at a step of a run as long as this one."""
        return decayed(self.step_size, self.final_fraction, step, observation.n_steps)


def ahead(
    oracle: Oracle,
    replica: Replica,
    observation: Observation,
    part: tuple[int, int] | None = None,
) -> Payload:
    """Gradient and new buffers of the next step's minibatch, packed for the others.

    A method that exchanges gradients takes them here, before the exchange; ``()`` after
    the last planned step, so that n steps cost n gradients.
    """
    if observation.last:
        return ()
    answer = oracle.gradient(
        replica.params, replica.buffers, observation.step + 1, part
    )
    return packed(answer.gradient, answer.buffers)


def first_gradient(
    oracle: Oracle, replica: Replica, part: tuple[int, int] | None = None
) -> Payload:
    """Gradient and new buffers of the first minibatch, packed as by ``ahead``."""
    answer = oracle.gradient(replica.params, replica.buffers, 0, part)
    return packed(answer.gradient, answer.buffers)


def heard(observation: Observation, own: Payload) -> list[Payload]:
    """Payloads in node order; the own one alone where nobody else is listened to.

    Raises
    ------
    ValueError — if this step was not planned, so that no gradient was taken for it.
    """
    check("observation.step", observation.step, "a planned step", bool(own))
    return list(observation.inbox.values()) or [own]


def team_of(node: Node) -> Team:
    """The node's team; equal nodes on one machine where nothing is said of it."""
    return node.team or Team.of(node.n_nodes, 1)


def others(node: int, team: Team) -> tuple[int, ...]:
    """All nodes of the team but ``node``."""
    return tuple(j for j in range(team.n_nodes) if j != node)


def due(step: int, every: int) -> bool:
    """Whether ``step`` steps are a whole number of periods, at least one."""
    return step > 0 and step % every == 0


def moved(replica: Replica, params: Tensor, buffers: Tensor | None) -> Replica:
    """The same replica at other values; its optimiser's memory stays."""
    return replace(replica, params=params, buffers=buffers)


def mean(tensors: list[Tensor], weights: list[float] | None = None) -> Tensor:
    """Mean, added up in order, so that every node gets the same bits.

    Parameters
    ----------
    weights : shares that sum to 1; None: equal ones.
    """
    total = torch.zeros_like(tensors[0])
    if weights is None:
        for tensor in tensors:
            total += tensor
        return total / len(tensors)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor
    return total


def packed(params: Tensor, buffers: Tensor | None) -> tuple[Tensor, ...]:
    """Payload of a replica: its parameters, and its buffers if there are any."""
    return (params,) if buffers is None else (params, buffers)


def mean_replica(
    payloads: list[tuple[Tensor, ...]], weights: list[float] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Mean parameters and buffers of payloads made by ``packed``."""
    params = mean([payload[0] for payload in payloads], weights)
    if len(payloads[0]) == 1:
        return params, None
    return params, mean([payload[1] for payload in payloads], weights)


def check(name: str, value: Any, rule: str, ok: bool) -> None:
    """Raise ``ValueError`` naming a setting and its rule, unless ``ok``."""
    if not ok:
        raise ValueError(f"`{name}` must be {rule}; got {value}. Correct the setting.")
