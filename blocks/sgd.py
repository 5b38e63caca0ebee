"""Back-propagation baselines: SGD with momentum, and Adam, on minibatches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from torch import Tensor

from blocks.algorithm import Combine, Information, Message, Node, Observation, Oracle
from blocks.optimisers import Adam, Momentum, decayed

Opt = TypeVar("Opt", Momentum, Adam)


@dataclass(frozen=True, slots=True, eq=False)
class SGDState(Generic[Opt]):
    """Parameters of the one replica and what its optimiser remembers."""

    params: Tensor  # (P,) float32, θ
    buffers: Tensor | None  # (B,) float32, normalisation statistics
    optimiser: Opt


class _Backpropagation(Generic[Opt]):
    """What both methods share: θ ← θ − α_k·direction(minibatch gradient).

    A method adds its settings, the optimiser's first state and the direction.
    """

    __slots__ = ()

    information: ClassVar[Information] = Information.GRADIENT_ORACLE
    combine: ClassVar[Combine] = Combine.MEAN
    modes: ClassVar[frozenset[str]] = frozenset({"sync"})
    blockwise: ClassVar[bool] = False
    scored: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    step_size: float
    batch_size: int
    final_fraction: float

    def __post_init__(self) -> None:
        _check("step_size", self.step_size, "positive", self.step_size > 0)
        _check("batch_size", self.batch_size, "≥ 1", self.batch_size >= 1)
        in_unit = 0 <= self.final_fraction <= 1
        _check("final_fraction", self.final_fraction, "in [0, 1]", in_unit)

    @property
    def n_probes(self) -> int:
        """No probes."""
        return 1

    def _optimiser(self, params: Tensor) -> Opt:
        """Return the optimiser's state before the first step."""
        raise NotImplementedError

    def _direction(self, state: SGDState[Opt], gradient: Tensor) -> tuple[Opt, Tensor]:
        """Return the optimiser's new state and the direction to go against."""
        raise NotImplementedError

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[SGDState[Opt], Message]:
        """Start at ``params`` (P,) with an optimiser that remembers nothing."""
        state = SGDState(params.clone(), node.buffers, self._optimiser(params))
        return state, Message(point=state.params, buffers=node.buffers)

    def step(
        self,
        state: SGDState[Opt],
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[SGDState[Opt], Message]:
        """Fold one minibatch gradient."""
        answer = oracle.gradient(state.params, state.buffers)
        optimiser, direction = self._direction(state, answer.gradient)
        alpha = decayed(
            self.step_size, self.final_fraction, observation.step, observation.n_steps
        )
        params = state.params - alpha * direction
        new = SGDState(params, answer.buffers, optimiser)
        return new, Message(point=params, buffers=answer.buffers)


@dataclass(frozen=True, slots=True)
class SGD(_Backpropagation[Momentum]):
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
    step_size: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 128
    final_fraction: float = 0.0

    paper: ClassVar[str] = "Robbins & Monro 1951; momentum: Polyak 1964"

    def __post_init__(self) -> None:
        _Backpropagation.__post_init__(self)
        _check("momentum", self.momentum, "in [0, 1)", 0 <= self.momentum < 1)
        _check("weight_decay", self.weight_decay, "≥ 0", self.weight_decay >= 0)

    def _optimiser(self, params: Tensor) -> Momentum:
        return Momentum.zeros(params)

    def _direction(
        self, state: SGDState[Momentum], gradient: Tensor
    ) -> tuple[Momentum, Tensor]:
        if self.weight_decay:
            gradient = gradient + self.weight_decay * state.params
        return state.optimiser.step(gradient, self.momentum)


@dataclass(frozen=True, slots=True)
class AdamTraining(_Backpropagation[Adam]):
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

    paper: ClassVar[str] = "Kingma & Ba 2015 (arXiv 1412.6980)"

    def __post_init__(self) -> None:
        _Backpropagation.__post_init__(self)
        _check("beta1", self.beta1, "in [0, 1)", 0 <= self.beta1 < 1)
        _check("beta2", self.beta2, "in [0, 1)", 0 <= self.beta2 < 1)

    def _optimiser(self, params: Tensor) -> Adam:
        return Adam.zeros(params)

    def _direction(
        self, state: SGDState[Adam], gradient: Tensor
    ) -> tuple[Adam, Tensor]:
        return state.optimiser.step(gradient, self.beta1, self.beta2)


def _check(name: str, value: float, rule: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"`{name}` must be {rule}; got {value}. Correct the setting.")
