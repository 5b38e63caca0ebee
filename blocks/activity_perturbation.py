"""Activity perturbation: layers learn from per-sample losses and their own noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.activity_noise import ActivityNoise, NoiseKind
from blocks.algorithm import Combine, Information, Message, Node, Observation, Oracle
from blocks.optimisers import Adam, Momentum, decayed
from blocks.replica import check


@dataclass(frozen=True, slots=True, eq=False)
class ActivityState:
    """Parameters of one block, and what its optimiser remembers."""

    params: Tensor  # (d,) float32
    optimiser: Adam | Momentum


@dataclass(frozen=True, slots=True)
class ActivityPerturbation:
    """Layers that perturb their outputs and are told every sample's losses.

    A version is one pass over ``loss_samples`` samples with noise ξ of standard
    deviation σ_l = σ·n^¼ on the outputs of every layer, n of them behind its rectifier
    and pool, in D antithetic pairs a sample. With ℓ± the losses of a pair,
    δ = (ℓ⁺ − ℓ⁻)/(2σ_l²)·ξ averaged over draws stands for the derivative of the loss
    by the layer's outputs, and the mean of x_n δ_n' over the samples, x_n the layer's
    own inputs, for the gradient. No backward pass; between layers nothing passes but
    the activations, forward.

    Parameters
    ----------
    noise_std : float — σ > 0, in units of the layers' outputs.
    draws : int — D ≥ 1 antithetic pairs a sample.
    noise : "sign" (±σ) or "gaussian".
    optimiser : "adam" or "momentum", what the estimate is given to.
    step_size : float — α > 0 at the first step, decayed by a cosine to
        ``final_fraction · α``.
    final_fraction : float — share of α left at the last step, in [0, 1].
    beta1, beta2 : float — decay of the two moments of "adam", in [0, 1).
    momentum : float — μ of "momentum", in [0, 1).

    Notes
    -----
    Our own derivation (``blocks.activity``); beyond the paper of ND-CAO. Blocks must be
    whole layers (``blocks.activity.check_blocks``). Cost per step: 2·D loss values on
    ``loss_samples`` samples each, and a product a layer.

    References
    ----------
    Williams (1992), Machine Learning 8, doi 10.1007/BF00992696; Werfel, Xie & Seung
    (2003), Learning curves for stochastic gradient descent in linear feedforward
    networks, NeurIPS: node perturbation.
    """

    kind: Literal["activity-perturbation"] = "activity-perturbation"
    noise_std: float = 0.004
    draws: int = 1
    noise: NoiseKind = "sign"
    optimiser: Literal["adam", "momentum"] = "adam"
    step_size: float = 2e-3
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    momentum: float = 0.9

    information: ClassVar[Information] = (
        Information.PER_SAMPLE_LOSS | Information.OWN_ACTIVATIONS
    )
    combine: ClassVar[Combine] = Combine.JOIN
    modes: ClassVar[frozenset[str]] = frozenset({"sync", "async"})
    paper: ClassVar[str] = "our derivation of node perturbation, after Williams 1992"
    blockwise: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "loss_samples": 1024,
        "redraw_every": 1,
        "blocks": "by_layer",
    }
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("noise_std", "step_size"):
            value = getattr(self, name)
            check(name, value, "positive and finite", 0 < value < math.inf)
        check("draws", self.draws, "≥ 1", self.draws >= 1)
        known = self.noise in ("sign", "gaussian")
        check("noise", self.noise, '"sign" or "gaussian"', known)
        known = self.optimiser in ("adam", "momentum")
        check("optimiser", self.optimiser, '"adam" or "momentum"', known)
        in_unit = 0 <= self.final_fraction <= 1
        check("final_fraction", self.final_fraction, "in [0, 1]", in_unit)
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            check(name, value, "in [0, 1)", 0 <= value < 1)

    @property
    def n_probes(self) -> int:
        """2·D, the losses of every sample in a record."""
        return 2 * self.draws

    @property
    def noise_settings(self) -> ActivityNoise:
        """What a pass adds to the layers' outputs."""
        return ActivityNoise(self.noise_std, self.draws, self.noise)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[ActivityState, Message]:
        """Start at ``params`` (d,) with an optimiser that remembers nothing."""
        adam = self.optimiser == "adam"
        optimiser = Adam.zeros(params) if adam else Momentum.zeros(params)
        state = ActivityState(params.clone(), optimiser)
        return state, Message(point=state.params)

    def step(
        self,
        state: ActivityState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[ActivityState, Message]:
        """Fold one version's estimate; a non-finite loss moves nothing."""
        if not np.isfinite(observation.record.losses).all():
            return state, Message(point=state.params)
        estimate = oracle.activity_estimate()
        optimiser: Adam | Momentum
        if isinstance(state.optimiser, Adam):
            optimiser, direction = state.optimiser.step(
                estimate, self.beta1, self.beta2
            )
        else:
            optimiser, direction = state.optimiser.step(estimate, self.momentum)
        alpha = decayed(
            self.step_size, self.final_fraction, observation.step, observation.n_steps
        )
        params = state.params - alpha * direction
        return ActivityState(params, optimiser), Message(point=params)
