"""SelSync (Tyagi & Swany 2023): synchronise when gradients change much."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.algorithm import Message, Node, Observation, Oracle, Payload, Scalars
from blocks.replica import (
    Replica,
    ReplicaSGD,
    ahead,
    check,
    first_gradient,
    mean_replica,
    moved,
    others,
    packed,
)
from blocks.team import Team


@dataclass(frozen=True, slots=True, eq=False)
class SelSyncState:
    """A replica, the gradient it has taken there, and how large the last ones were."""

    replica: Replica
    answer: Payload  # (P,) gradient at ``replica``, (B,) buffers after its pass
    norms: tuple[float, ...] = ()  # ‖g‖² of the last steps, the newest last


@dataclass(frozen=True, slots=True)
class SelSync(ReplicaSGD):
    """Local SGD steps, and the mean of all replicas first when any flag is up.

    n_k = the weighted mean of the last ``window`` values of ‖g_i‖², weights
    (1 − ``smoothing``)^age; Δ = |n_k − n_{k−1}|/n_{k−1}. A node raises its flag if
    Δ ≥ ``threshold``, if Δ is not finite, and in the first ``warm_up`` steps. If any
    flag is up: θ_i ← mean of all θ_j. Then the own gradient, taken before, is applied.

    Parameters
    ----------
    step_size, momentum, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.
    threshold : float — δ ≥ 0 for Δ; infinite: only what is not finite raises a flag.
    window : int — how many gradients are smoothed over.
    smoothing : float — in [0, 1); 0 = the plain mean over the window.
    warm_up : int — first steps, all synchronised.

    Notes
    -----
    Differs from the authors' code in: the squared norm of the whole gradient, as the
    paper has it, not a sum of layers' norms; Δ is not smoothed once more. Every node
    walks all data in its own order. Cost per step: 1 gradient evaluation and one number
    told to all; when a flag is up P (and B) numbers from every other node.

    References
    ----------
    Tyagi & Swany (2023). Accelerating Distributed ML Training via Selective
    Synchronization. IEEE CLUSTER, arXiv 2307.07950. Algorithm 1.
    """

    kind: Literal["selsync"] = "selsync"
    threshold: float = 0.3
    window: int = 25
    smoothing: float = 0.04
    warm_up: int = 25

    data: ClassVar[str] = "whole"
    tells: ClassVar[bool] = True
    paper: ClassVar[str] = "Tyagi & Swany 2023 (arXiv 2307.07950)"

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        check("threshold", self.threshold, "at least 0", self.threshold >= 0)
        check("window", self.window, "at least 1", self.window >= 1)
        check("smoothing", self.smoothing, "in [0, 1)", 0 <= self.smoothing < 1)
        check("warm_up", self.warm_up, "at least 0", self.warm_up >= 0)

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """All others if any flag is up, else nobody."""
        raised = any(flag > 0 for (flag,) in scalars)
        return others(node, team) if raised else ()

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[SelSyncState, Message]:
        """Start at ``params`` (P,) and take the gradient of the first minibatch."""
        replica = self.begin(node, params)
        return self._answer(replica, first_gradient(oracle, replica), (), 0)

    def step(
        self,
        state: SelSyncState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[SelSyncState, Message]:
        """Move to the mean if a flag was up; apply the own gradient; take the next."""
        k, replica = observation.step, state.replica
        check("observation.step", k, "a planned step", bool(state.answer))
        gradient, buffers = state.answer[0], _buffers(state.answer)
        if observation.inbox:
            params, buffers = mean_replica(list(observation.inbox.values()))
            replica = moved(replica, params, buffers)
        replica = self.descend(replica, gradient, buffers, observation)
        answer = ahead(oracle, replica, observation)
        return self._answer(replica, answer, state.norms, k + 1)

    def change(self, norms: tuple[float, ...]) -> float:
        """Δ between the smoothed squared norms with and without the newest one.

        Parameters
        ----------
        norms : up to ``window`` + 1 values, the newest last; fewer than two: Δ = 0.
        """
        if len(norms) < 2:
            return 0.0 if all(map(math.isfinite, norms)) else math.nan
        before = self._smoothed(norms[:-1])
        return abs(self._smoothed(norms) - before) / max(before, sys.float_info.min)

    def _smoothed(self, norms: tuple[float, ...]) -> float:
        recent = norms[-self.window :]
        weights = [(1 - self.smoothing) ** age for age in range(len(recent))][::-1]
        total = sum(w * n for w, n in zip(weights, recent, strict=True))
        return total / sum(weights)

    def _answer(
        self, replica: Replica, answer: Payload, norms: tuple[float, ...], step: int
    ) -> tuple[SelSyncState, Message]:
        """State and message before step ``step``, with the flag for that step."""
        raised, payload = False, answer
        if answer:
            newest = float(answer[0].double().square().sum())
            norms = (*norms, newest)[-self.window - 1 :]
            raised = step < self.warm_up or not self.change(norms) < self.threshold
            payload = packed(replica.params, _buffers(answer))
        message = Message(
            replica.params,
            buffers=replica.buffers,
            payload=payload,
            scalars=(float(raised),),
        )
        return SelSyncState(replica, answer, norms), message


def _buffers(answer: Payload) -> Tensor | None:
    return answer[1] if len(answer) > 1 else None
