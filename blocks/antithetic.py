"""Search by antithetic joint probes: what the methods that use them share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import Combine, Information, Message, Node, Observation, Oracle
from blocks.low_rank import NO_MATRICES, Directions, check_rank, draw_directions
from blocks.optimisers import Adam, decayed
from blocks.probes import ProbeKind


@dataclass(frozen=True, slots=True, eq=False)
class SearchState:
    """Where one block searches, and what its optimiser remembers."""

    node: int
    seed: int
    centre: Tensor  # (d,) float32
    optimiser: Adam
    matrices: np.ndarray = field(default_factory=NO_MATRICES.copy)  # (m, 3) int64


def antithetic_gradient(values: np.ndarray, std: float, dirs: Directions) -> Tensor:
    """Σ_k (J_k⁺ − J_k⁻)/(2σn) · n_k, the raw antithetic estimate.

    Parameters
    ----------
    values : (2n,) float — losses (or shaped losses), order +0, −0, +1, −1, ….
    std : float — σ of the probes.
    dirs : n unit-variance directions, dense or of low rank.

    Returns
    -------
    (d,) float32.
    """
    differences = (values[0::2] - values[1::2]) / (2.0 * std * dirs.n_pairs)
    weights = torch.tensor(differences, dtype=dirs.dtype, device=dirs.device)
    return dirs.combine(weights)


class AntitheticSearch:
    """θ ← θ − α_k·Adam(g), g the antithetic estimate from K joint probes a version.

    A method adds its settings, among them those named below, and K; it may shape the
    losses. Every block rebuilds its own directions from (seed, node, step); only the K
    losses are shared. When a score belongs to an earlier centre (asynchronous), the
    directions are rebuilt for that step.
    """

    __slots__ = ()

    information: ClassVar[Information] = Information.SHARED_LOSS
    combine: ClassVar[Combine] = Combine.JOIN
    modes: ClassVar[frozenset[str]] = frozenset({"sync", "async"})
    blockwise: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "loss_samples": 256,
        "redraw_every": 1,
        "blocks": "all",
    }
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    noise_std: float
    step_size: float
    final_fraction: float
    beta1: float
    beta2: float
    rank: int

    def __post_init__(self) -> None:
        rules = {
            "noise_std": ("positive and finite", 0 < self.noise_std < math.inf),
            "step_size": ("positive and finite", 0 < self.step_size < math.inf),
            "epsilon": ("positive and finite", 0 < self.epsilon < math.inf),
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
        check_rank(self.rank)

    @property
    def epsilon(self) -> float:
        """ε of Adam."""
        return 1e-8

    @property
    def probe_kind(self) -> ProbeKind:
        """Distribution of a direction's entries."""
        return "sign"

    @property
    def n_probes(self) -> int:
        """K, even."""
        raise NotImplementedError

    def _shaped(self, losses: np.ndarray) -> np.ndarray:
        """(K,) what is estimated from, in the order of ``losses`` (K,)."""
        return losses

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[SearchState, Message]:
        """Start the search around ``params`` (d,)."""
        state = SearchState(
            node.index,
            node.seed,
            params.clone(),
            Adam.zeros(params),
            NO_MATRICES.copy() if node.matrices is None else node.matrices.copy(),
        )
        return state, Message(point=state.centre, probe_std=self.noise_std)

    def step(
        self,
        state: SearchState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[SearchState, Message]:
        """Fold K losses; a record with a non-finite loss moves nothing."""
        record = observation.record
        losses = np.asarray(record.losses)
        if not np.isfinite(losses).all():
            return state, Message(point=state.centre, probe_std=self.noise_std)
        dirs = draw_directions(
            state.seed,
            state.node,
            record.steps[state.node],
            self.n_probes // 2,
            state.centre.numel(),
            self.probe_kind,
            self.rank,
            state.matrices,
            state.centre.device,
        )
        gradient = antithetic_gradient(self._shaped(losses), self.noise_std, dirs)
        optimiser, direction = state.optimiser.step(
            gradient, self.beta1, self.beta2, self.epsilon
        )
        alpha = decayed(
            self.step_size, self.final_fraction, observation.step, observation.n_steps
        )
        centre = state.centre - alpha * direction
        new = replace(state, centre=centre, optimiser=optimiser)
        return new, Message(point=centre, probe_std=self.noise_std)
