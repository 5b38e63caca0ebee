"""OpenAI-ES (Salimans, Ho, Chen, Sidor, Sutskever 2017): evolution strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from blocks.antithetic import AntitheticSearch
from blocks.probes import ProbeKind


def centred_ranks(losses: np.ndarray) -> np.ndarray:
    """(K,) float64 ranks of ``losses`` scaled to [−½, ½]; ties broken by position."""
    ranks = np.empty(len(losses))
    ranks[np.argsort(losses, kind="stable")] = np.arange(len(losses))
    return ranks / max(len(losses) - 1, 1) - 0.5


@dataclass(frozen=True, slots=True)
class OpenES(AntitheticSearch):
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
    rank : int — outer products that perturb a weight array (``blocks.low_rank``); 0:
        every entry on its own.

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
    rank: int = 0

    paper: ClassVar[str] = "Salimans et al. 2017 (arXiv 1703.03864)"

    def __post_init__(self) -> None:
        if self.population_size < 2 or self.population_size % 2:
            raise ValueError(
                "`population_size` must be even and at least 2 (antithetic pairs); got "
                f"{self.population_size}. Round it up."
            )
        AntitheticSearch.__post_init__(self)

    @property
    def n_probes(self) -> int:
        """K."""
        return self.population_size

    def _shaped(self, losses: np.ndarray) -> np.ndarray:
        return centred_ranks(losses) if self.ranked else losses
