"""SPSA (Spall 1992): two losses a step, at ± one random direction of ±1 entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from blocks.antithetic import AntitheticSearch


@dataclass(frozen=True, slots=True)
class SPSA(AntitheticSearch):
    """Simultaneous perturbation: all parameters moved at once, two losses a direction.

    g = mean over ``pairs`` of (J(θ + c·δ) − J(θ − c·δ))/(2c)·δ, every entry of δ ±1
    with equal odds, for which dividing by an entry and multiplying by it are the same.
    With several blocks each estimates its own part of the gradient from the same
    losses.

    Parameters
    ----------
    pairs : int — directions averaged, 2·pairs losses a version.
    noise_std : float — c > 0.
    step_size : float — α of Adam, decayed by a cosine to ``final_fraction · α``.
    final_fraction : float — share of α left at the last step.
    beta1, beta2 : float — decay of Adam's two moments.
    epsilon : float — ε of Adam; a large one makes steps shrink with the gradient.
    rank : int — outer products that perturb a weight array (``blocks.low_rank``); 0:
        every entry on its own.

    Notes
    -----
    Differs from the paper in: Adam instead of plain steps, a cosine instead of
    a/(A + k)^0.602, a constant c instead of c/k^0.101. Cost per step: 2·pairs loss
    values on ``loss_samples`` samples each.

    References
    ----------
    Spall (1992). Multivariate Stochastic Approximation Using a Simultaneous
    Perturbation Gradient Approximation. IEEE Transactions on Automatic Control 37(3).
    doi 10.1109/9.119632.
    """

    kind: Literal["spsa"] = "spsa"
    pairs: int = 1
    noise_std: float = 1e-3
    step_size: float = 3e-3
    final_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-3
    rank: int = 0

    paper: ClassVar[str] = "Spall 1992 (doi 10.1109/9.119632)"

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(
                f"`pairs` must be at least 1; got {self.pairs}. Correct the setting."
            )
        AntitheticSearch.__post_init__(self)

    @property
    def n_probes(self) -> int:
        """2·``pairs``."""
        return 2 * self.pairs
