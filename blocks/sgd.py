"""Back-propagation baselines: SGD with momentum, and Adam, on minibatches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.algorithm import Combine, Information, Message, Node, Observation, Oracle
from blocks.optimisers import Adam, decayed
from blocks.replica import Replica, ReplicaSGD, check


@dataclass(frozen=True, slots=True)
class SGD(ReplicaSGD):
    """Minibatch SGD with heavy-ball momentum: v ← μ v + g, θ ← θ − α v.

    One step is one minibatch of the epoch's deterministic shuffle. The yardstick for
    what gradient-freedom costs.

    Parameters
    ----------
    step_size : float — α > 0 at the first step, decayed by a cosine to
        ``final_fraction · α``.
    momentum : float — μ in [0, 1).
    weight_decay : float — λ ≥ 0, coupled: g ← g + λ θ.
    batch_size : int — samples a step.

    Notes
    -----
    Cost per step: 1 gradient evaluation, ``batch_size`` samples. Buffers (batch-norm
    statistics) are updated in training mode and travel with the answer.

    References
    ----------
    Robbins & Monro (1951); Polyak (1964).
    """

    kind: Literal["sgd"] = "sgd"
    batch_size: int = 128

    information: ClassVar[Information] = Information.GRADIENT_ORACLE
    paper: ClassVar[str] = "Robbins & Monro 1951; momentum: Polyak 1964"
    defaults: ClassVar[Mapping[str, Any]] = {}

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[Replica, Message]:
        """Start at ``params`` (P,) with an optimiser that remembers nothing."""
        replica = self.begin(node, params)
        return replica, Message(point=replica.params, buffers=replica.buffers)

    def step(
        self,
        state: Replica,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[Replica, Message]:
        """Fold one minibatch gradient."""
        answer = oracle.gradient(state.params, state.buffers)
        new = self.descend(state, answer.gradient, answer.buffers, observation)
        return new, Message(point=new.params, buffers=new.buffers)


@dataclass(frozen=True, slots=True, eq=False)
class AdamState:
    """Parameters of the one replica and what its optimiser remembers."""

    params: Tensor  # (P,) float32, θ
    buffers: Tensor | None  # (B,) float32, normalisation statistics
    optimiser: Adam


@dataclass(frozen=True, slots=True)
class AdamTraining:
    """Adam on minibatches: θ ← θ − α m̂/(√v̂ + ε).

    Parameters
    ----------
    step_size : float — α > 0 at the first step, decayed by a cosine to
        ``final_fraction · α``.
    beta1, beta2 : float — decay of the two moments, in [0, 1).
    batch_size : int — samples a step.

    Notes
    -----
    ε is 1e-8. Cost per step: 1 gradient evaluation, ``batch_size`` samples.

    References
    ----------
    Kingma & Ba (2015). Adam. ICLR, arXiv 1412.6980. Algorithm 1.
    """

    kind: Literal["adam"] = "adam"
    step_size: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    batch_size: int = 128
    final_fraction: float = 0.0

    information: ClassVar[Information] = Information.GRADIENT_ORACLE
    combine: ClassVar[Combine] = Combine.MEAN
    modes: ClassVar[frozenset[str]] = frozenset({"sync"})
    paper: ClassVar[str] = "Kingma & Ba 2015 (arXiv 1412.6980)"
    blockwise: ClassVar[bool] = False
    scored: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check("step_size", self.step_size, "positive", self.step_size > 0)
        check("beta1", self.beta1, "in [0, 1)", 0 <= self.beta1 < 1)
        check("beta2", self.beta2, "in [0, 1)", 0 <= self.beta2 < 1)
        check("batch_size", self.batch_size, "≥ 1", self.batch_size >= 1)
        in_unit = 0 <= self.final_fraction <= 1
        check("final_fraction", self.final_fraction, "in [0, 1]", in_unit)

    @property
    def n_probes(self) -> int:
        """No probes."""
        return 1

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[AdamState, Message]:
        """Start at ``params`` (P,) with an optimiser that remembers nothing."""
        state = AdamState(params.clone(), node.buffers, Adam.zeros(params))
        return state, Message(point=state.params, buffers=node.buffers)

    def step(
        self,
        state: AdamState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[AdamState, Message]:
        """Fold one minibatch gradient."""
        answer = oracle.gradient(state.params, state.buffers)
        optimiser, direction = state.optimiser.step(
            answer.gradient, self.beta1, self.beta2
        )
        alpha = decayed(
            self.step_size, self.final_fraction, observation.step, observation.n_steps
        )
        params = state.params - alpha * direction
        new = AdamState(params, answer.buffers, optimiser)
        return new, Message(point=params, buffers=answer.buffers)
