"""OpenAI-ES (Salimans, Ho, Chen, Sidor, Sutskever 2017): evolution strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import Combine, Information, Message, Node, Observation, Oracle
from blocks.optimisers import Adam, decayed
from blocks.probes import ProbeKind, directions


@dataclass(frozen=True, slots=True, eq=False)
class OpenESState:
    """Where one block searches, and what its optimiser remembers."""

    node: int
    seed: int
    centre: Tensor  # (d,) float32
    optimiser: Adam


def centred_ranks(losses: np.ndarray) -> np.ndarray:
    """(K,) float64 ranks of ``losses`` scaled to [−½, ½]; ties broken by position."""
    ranks = np.empty(len(losses))
    ranks[np.argsort(losses, kind="stable")] = np.arange(len(losses))
    return ranks / max(len(losses) - 1, 1) - 0.5


def antithetic_gradient(values: np.ndarray, std: float, dirs: Tensor) -> Tensor:
    """Σ_k (J_k⁺ − J_k⁻)/(2σn) · n_k, the raw antithetic estimate.

    Parameters
    ----------
    values : (2n,) float — losses (or shaped losses), order +0, −0, +1, −1, ….
    std : float — σ of the probes.
    dirs : (n, d) float32 — unit-variance directions.

    Returns
    -------
    (d,) float32.
    """
    differences = (values[0::2] - values[1::2]) / (2.0 * std * len(dirs))
    weights = torch.tensor(differences, dtype=dirs.dtype, device=dirs.device)
    return dirs.T @ weights


@dataclass(frozen=True, slots=True)
class OpenES:
    """Evolution strategy from K joint probes a version, with Adam.

    g = Σ_k (r_k⁺ − r_k⁻)/(2σn)·n_k over n = K/2 pairs, r the centred ranks of the
    losses. Every block rebuilds its own directions n_k from (seed, node, step); only
    the K losses are shared. With one block this is OpenAI-ES; with several, each block
    estimates its own part of the gradient from the same losses.

    Parameters
    ----------
    population_size : int — K, even; antithetic pairs.
    noise_std : float — σ > 0 of the probes.
    step_size : float — α of Adam, decayed by a cosine to ``final_fraction · α``.
    ranked : bool — centred ranks instead of raw losses.
    final_fraction : float — share of α left at the last step.
    beta1, beta2 : float — decay of Adam's two moments.
    probe_kind : "gaussian" (the paper) or "sign".

    Notes
    -----
    Differs from the paper in: no virtual batch normalisation, no weight decay. When a
    score belongs to an earlier centre (asynchronous), the directions are rebuilt for
    that step. Cost per step: K loss values on ``loss_samples`` samples each.

    References
    ----------
    Salimans et al. (2017). Evolution Strategies as a Scalable Alternative to
    Reinforcement Learning. arXiv 1703.03864. Algorithm 2.
    """

    kind: Literal["open-es"] = "open-es"
    population_size: int = 256
    noise_std: float = 0.02
    step_size: float = 5e-3
    final_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    ranked: bool = True
    probe_kind: ProbeKind = "gaussian"

    information: ClassVar[Information] = Information.SHARED_LOSS
    combine: ClassVar[Combine] = Combine.JOIN
    modes: ClassVar[frozenset[str]] = frozenset({"sync", "async"})
    paper: ClassVar[str] = "Salimans et al. 2017 (arXiv 1703.03864)"
    blockwise: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "loss_samples": 256,
        "redraw_every": 1,
        "blocks": "all",
    }
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.population_size < 2 or self.population_size % 2:
            raise ValueError(
                "`population_size` must be even and at least 2 (antithetic pairs); got "
                f"{self.population_size}. Round it up."
            )
        rules = {
            "noise_std": ("positive and finite", 0 < self.noise_std < math.inf),
            "step_size": ("positive and finite", 0 < self.step_size < math.inf),
            "final_fraction": ("in [0, 1]", 0 <= self.final_fraction <= 1),
            "beta1": ("in [0, 1)", 0 <= self.beta1 < 1),
            "beta2": ("in [0, 1)", 0 <= self.beta2 < 1),
        }
        for name, (rule, kept) in rules.items():
            if not kept:
                raise ValueError(
                    f"`{name}` must be {rule}; got {getattr(self, name)}. "
                    "Correct the setting."
                )

    @property
    def n_probes(self) -> int:
        """K."""
        return self.population_size

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[OpenESState, Message]:
        """Start the search around ``params`` (d,)."""
        state = OpenESState(node.index, node.seed, params.clone(), Adam.zeros(params))
        return state, Message(point=state.centre, probe_std=self.noise_std)

    def step(
        self,
        state: OpenESState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[OpenESState, Message]:
        """Fold K losses; a record with a non-finite loss moves nothing."""
        record = observation.record
        losses = np.asarray(record.losses)
        if not np.isfinite(losses).all():
            return state, Message(point=state.centre, probe_std=self.noise_std)
        dirs = directions(
            state.seed,
            state.node,
            record.steps[state.node],
            self.population_size // 2,
            state.centre.numel(),
            self.probe_kind,
            state.centre.device,
        )
        values = centred_ranks(losses) if self.ranked else losses
        gradient = antithetic_gradient(values, self.noise_std, dirs)
        optimiser, direction = state.optimiser.step(gradient, self.beta1, self.beta2)
        alpha = decayed(
            self.step_size, self.final_fraction, observation.step, observation.n_steps
        )
        centre = state.centre - alpha * direction
        new = OpenESState(state.node, state.seed, centre, optimiser)
        return new, Message(point=centre, probe_std=self.noise_std)
