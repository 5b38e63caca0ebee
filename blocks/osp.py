"""OSP (Chen, Shi, Liu, Li, Liu, Xu 2023): the rest of a gradient comes a step later."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import Message, Node, Observation, Oracle, Payload, Scalars
from blocks.replica import (
    Replica,
    ReplicaSGD,
    ahead,
    check,
    first_gradient,
    heard,
    mean,
    others,
    team_of,
)
from blocks.team import Team


@dataclass(frozen=True, slots=True, eq=False)
class OSPState:
    """What is settled, and what is on its way; the guess is in the message."""

    settled: (
        Replica  # after all gradients that have wholly arrived: the same everywhere
    )
    payload: Payload  # see ``_told``
    rest: Tensor  # (P − m,) of the gradient in ``payload``; goes out a step later
    important: Tensor | None  # (P,) mean of the parts s_j of the step before
    indices: tuple[Tensor, ...]  # by node, where those parts are
    weights: tuple[float, ...]  # n_i/n by node


@dataclass(frozen=True, slots=True)
class OSP(ReplicaSGD):
    """Synchronous SGD whose barrier waits for the important part of gradients only.

    Node i splits g_i = s_i + r_i: s_i holds the m = ⌈``important`` · P⌉ entries largest
    in size over the whole vector. Stage 1, at the barrier: the mean s̄. Stage 2, a step
    later: the mean r̄. Until then a node takes its own r_i for r̄:
    x_i ← step from θ with s̄ + r_i, and the next gradient is taken at x_i; when r̄
    arrives θ ← step from θ with s̄ + r̄, which takes (r̄ − r_i) into x_i and momentum.

    Parameters
    ----------
    step_size, momentum, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.
    important : float — in (0, 1]; 1 = all-reduce SGD.

    Notes
    -----
    In the manner of the paper: that a gradient is exchanged in two stages with a local
    correction is its own; entries by size, the fixed share and θ kept beside x_i are
    ours. θ is the same bit for bit on all nodes. The harness delivers stage 2 with the
    next barrier. Received per step from every other node: m values and m int32
    indices, P − m values whose places follow from the step before, B buffers.

    References
    ----------
    Chen et al. (2023). OSP: Boosting Distributed Model Training with 2-stage
    Synchronization. ICPP, arXiv 2306.16926.
    """

    kind: Literal["osp"] = "osp"
    important: float = 0.1

    paper: ClassVar[str] = "Chen, Shi, Liu, Li, Liu, Xu 2023 (arXiv 2306.16926)"

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        check("important", self.important, "in (0, 1]", 0 < self.important <= 1)

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """All others, at every step."""
        return others(node, team)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[OSPState, Message]:
        """Start at ``params`` (P,) and take the gradient of the first minibatch."""
        counts = team_of(node).n_samples
        replica = self.begin(node, params)
        nothing = params.new_zeros(0)
        payload, rest = self._told(first_gradient(oracle, replica), nothing)
        weights = tuple(count / sum(counts) for count in counts)
        state = OSPState(replica, payload, rest, None, (), weights)
        return state, Message(replica.params, buffers=node.buffers, payload=payload)

    def step(
        self,
        state: OSPState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[OSPState, Message]:
        """Settle the step before; guess this one; take the next gradient there."""
        told, weights = heard(observation, state.payload), list(state.weights)
        settled = state.settled
        if state.important is not None:
            rests = [
                outside(payload[2], where, settled.params)
                for payload, where in zip(told, state.indices, strict=True)
            ]
            gradient = state.important + mean(rests, weights)
            before = replace(observation, step=observation.step - 1)
            settled = self.descend(settled, gradient, None, before)
        indices = tuple(payload[1] for payload in told)
        parts = [inside(payload[0], payload[1], settled.params) for payload in told]
        important = mean(parts, weights)
        own = outside(state.rest, state.payload[1], settled.params)
        buffers = None
        if len(state.payload) > 3:
            buffers = mean([payload[3] for payload in told], weights)
        guess = self.descend(settled, important + own, buffers, observation)
        payload, rest = self._told(ahead(oracle, guess, observation), state.rest)
        new = OSPState(settled, payload, rest, important, indices, state.weights)
        return new, Message(guess.params, buffers=buffers, payload=payload)

    def _told(self, answer: Payload, rest: Tensor) -> tuple[Payload, Tensor]:
        """What the others get, and what stays for a step later.

        They get the m important values, their places (int32; none if m = P), the rest
        of the gradient before, and the buffers.
        """
        if not answer:
            return (), rest
        gradient, *buffers = answer
        size = gradient.numel()
        m = min(math.ceil(self.important * size), size)
        if m == size:
            places = torch.empty(0, dtype=torch.int32, device=gradient.device)
            return (gradient, places, rest, *buffers), gradient.new_zeros(0)
        largest = gradient.abs().topk(m, sorted=False).indices
        chosen = torch.zeros(size, dtype=torch.bool, device=gradient.device)
        chosen[largest] = True
        places = chosen.nonzero().flatten().to(torch.int32)
        return (gradient[chosen], places, rest, *buffers), gradient[~chosen]


def inside(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """(P,) zeros but for ``values`` (m,) at ``places`` (m,); no places: all of them."""
    if values.numel() == like.numel():
        return values
    whole = torch.zeros_like(like)
    whole[places.long()] = values
    return whole


def outside(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """(P,) zeros but for ``values`` (P − m,) everywhere but at ``places`` (m,)."""
    whole = torch.zeros_like(like)
    if values.numel():
        free = torch.ones_like(like, dtype=torch.bool)
        free[places.long()] = False
        whole[free] = values
    return whole
