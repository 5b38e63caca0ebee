"""Direct feedback alignment (Nøkland 2016; Launay, Poli, Krzakala 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.algorithm import Combine, Information, Message, Node, Observation, Oracle
from blocks.feedback import GaussianFeedback
from blocks.optimisers import Adam, Momentum, decayed
from blocks.replica import check


@dataclass(frozen=True, slots=True, eq=False)
class DFAState:
    """The one replica, what its optimiser remembers, and the seed of the feedback."""

    params: Tensor  # (P,) θ
    buffers: Tensor | None  # (B,) normalisation statistics
    optimiser: Adam | Momentum
    seed: int


@dataclass(frozen=True, slots=True)
class DirectFeedback:
    """Layers that learn from the output's error through one fixed random matrix.

    With e the derivative of the loss by the logits and y_l the output of layer l (its
    activation and pooling included), layer l's parameters take the derivative of
    ⟨y_l, e B_l⟩ in the place of their gradient; the last layer takes its true one.
    B_l is the first columns of one Gaussian matrix, drawn from the run's seed and
    scaled to a norm of about 1. No gradient passes from layer to layer.

    Parameters
    ----------
    optimiser : "adam" or "momentum", what the result is given to.
    step_size : float — α > 0 at the first step, decayed by a cosine to
        ``final_fraction · α``.
    momentum : float — μ of "momentum", in [0, 1).
    beta1, beta2 : float — decay of the two moments of "adam", in [0, 1).
    batch_size : int — samples a step.

    Notes
    -----
    The matrix, its scale and the place where the error enters are those of the 2019
    paper's public code; Adam and the cosine are ours. The model must be a chain
    (``blocks.feedback.segments``). Cost per step: one forward pass and a local
    product a layer on ``batch_size`` samples, counted as 1 gradient evaluation.

    References
    ----------
    Nøkland (2016). Direct Feedback Alignment Provides Learning in Deep Neural Networks.
    NeurIPS, arXiv 1609.01596. Launay, Poli & Krzakala (2019). Principled Training of
    Neural Networks with Direct Feedback Alignment. arXiv 1906.04554.
    """

    kind: Literal["dfa"] = "dfa"
    optimiser: Literal["adam", "momentum"] = "adam"
    step_size: float = 3e-3
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    batch_size: int = 32
    final_fraction: float = 0.0

    information: ClassVar[Information] = (
        Information.OUTPUT_ERROR | Information.OWN_ACTIVATIONS
    )
    combine: ClassVar[Combine] = Combine.MEAN
    modes: ClassVar[frozenset[str]] = frozenset({"sync"})
    paper: ClassVar[str] = "Nøkland 2016 (arXiv 1609.01596); arXiv 1906.04554"
    blockwise: ClassVar[bool] = False
    scored: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        known = self.optimiser in ("adam", "momentum")
        check("optimiser", self.optimiser, '"adam" or "momentum"', known)
        check("step_size", self.step_size, "positive", 0 < self.step_size < math.inf)
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            check(name, value, "in [0, 1)", 0 <= value < 1)
        check("batch_size", self.batch_size, "≥ 1", self.batch_size >= 1)
        in_unit = 0 <= self.final_fraction <= 1
        check("final_fraction", self.final_fraction, "in [0, 1]", in_unit)

    @property
    def n_probes(self) -> int:
        """No probes."""
        return 1

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[DFAState, Message]:
        """Start at ``params`` (P,) with an optimiser that remembers nothing."""
        adam = self.optimiser == "adam"
        optimiser = Adam.zeros(params) if adam else Momentum.zeros(params)
        state = DFAState(params.clone(), node.buffers, optimiser, node.seed)
        return state, Message(point=state.params, buffers=node.buffers)

    def step(
        self,
        state: DFAState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[DFAState, Message]:
        """Fold what one minibatch's error says to every layer."""
        answer = oracle.direct_feedback(
            state.params, state.buffers, GaussianFeedback(state.seed)
        )
        optimiser, direction = self._direction(state.optimiser, answer.gradient)
        alpha = decayed(
            self.step_size, self.final_fraction, observation.step, observation.n_steps
        )
        params = state.params - alpha * direction
        new = DFAState(params, answer.buffers, optimiser, state.seed)
        return new, Message(point=params, buffers=answer.buffers)

    def _direction(
        self, optimiser: Adam | Momentum, gradient: Tensor
    ) -> tuple[Adam | Momentum, Tensor]:
        if isinstance(optimiser, Adam):
            return optimiser.step(gradient, self.beta1, self.beta2)
        return optimiser.step(gradient, self.momentum)
