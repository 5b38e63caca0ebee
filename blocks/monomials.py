"""Monomial estimator of the loss, the form of the method's family (PCAO, BCD-CAO)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blocks.estimators import ridge_solve
from blocks.screening import Draw, Winner, screen_coordinates, screen_explicit
from blocks.window import Window

_BOUND = 10.0  # monomials are scaled to ±10 over the window


@dataclass(frozen=True, slots=True, eq=False)
class Monomials:
    """Ĵ = Σ_j θ_j m_j(x), m_j random monomials of orders 1 to 3 of own coordinates."""

    indices: np.ndarray  # (L, 3) int64 coordinates of each monomial, −1 = factor 1
    coordinates: Tensor  # (s,) int64 on the host, S: the coordinates in use, sorted
    factors: Tensor  # (L, 3) int64 positions in S, s = factor 1
    here: Tensor  # (s,) float64, the centre's coordinates in S
    weights: Tensor  # (L,) float64, θ, per scaled monomial
    scales: Tensor  # (L,) float64, 20/(max − min) over the window; 0 = dropped
    size: int  # d
    device: torch.device

    def predict(self, displacements: Tensor) -> Tensor:
        """(m, s) float64 displacements in S → (m,) float64 Ĵ up to a constant."""
        features = _monomials(self.here + displacements, self.factors)
        return features @ (self.scales * self.weights)

    def screen(
        self,
        n_candidates: int,
        scale: float,
        exploration: float,
        rng: np.random.Generator,
        draw: Draw = "gaussian",
    ) -> Winner:
        """Best of M draws of the coordinates in use."""
        return screen_coordinates(
            self.coordinates,
            lambda z: self.predict(scale * z),
            self.size,
            n_candidates,
            exploration,
            rng,
            draw,
            self.device,
        )

    def explicit(
        self,
        n_candidates: int,
        scale: float,
        exploration: float,
        rng: np.random.Generator,
        draw: Draw = "gaussian",
    ) -> Winner:
        """Best of M drawn candidates."""
        mask = torch.zeros(self.size)
        mask[self.coordinates] = 1.0
        mask = mask.to(self.device)

        def score(z: Tensor) -> Tensor:
            return self.predict(scale * z.cpu()[:, self.coordinates].to(torch.float64))

        return screen_explicit(
            lambda z: z * mask,
            score,
            self.size,
            n_candidates,
            exploration,
            rng,
            draw,
            self.device,
        )

    def strongest(self, count: int) -> np.ndarray:
        """(count, 3) int64: the monomials of largest |θ|, to be used again."""
        used = torch.where(self.scales > 0, self.weights.abs(), -1.0)
        order = torch.argsort(used, descending=True, stable=True)[:count]
        strongest: np.ndarray = self.indices[order.numpy()]
        return strongest


def draw_monomials(
    rng: np.random.Generator, size: int, count: int, kept: np.ndarray
) -> np.ndarray:
    """(count, 3) int64: ``kept`` and new random monomials of order 1, 2 or 3."""
    n_new = count - len(kept)
    indices = rng.integers(0, size, (n_new, 3))
    orders = rng.integers(1, 4, n_new)
    indices[np.arange(3)[None, :] >= orders[:, None]] = -1
    return np.concatenate([kept, indices]).astype(np.int64)


def fit_monomials(
    window: Window, centre: Tensor, ridge: float, indices: np.ndarray
) -> Monomials | None:
    """Fit Ĵ on monomials scaled to ±10 over the window, with a free constant.

    Parameters
    ----------
    window : scored pairs.
    centre : (d,) float32 — parameters around which candidates are drawn.
    ridge : float — penalty > 0 on every θ; none on the constant.
    indices : (L, 3) int64 — coordinates of each monomial, −1 = factor 1.

    Returns
    -------
    Monomials, or None if every monomial is constant over the window.
    """
    used = np.unique(indices[indices >= 0])
    places = np.where(indices >= 0, np.searchsorted(used, indices), len(used))
    coordinates, factors = torch.tensor(used), torch.tensor(places)
    at = coordinates.to(centre.device)
    here = centre[at].to("cpu", torch.float64)
    values = (window.rows[:, at] + window.anchor[at]).to("cpu", torch.float64)
    features = _monomials(values, factors)
    low, high = features.min(0).values, features.max(0).values
    scales = torch.where(high > low, 2.0 * _BOUND / (high - low), 0.0)
    if not bool((scales > 0.0).any()):
        return None
    scaled = window.centred((features - low) * scales)
    dual = ridge_solve(scaled @ scaled.T, window.centred(window.losses), ridge)
    weights = scaled.T @ dual
    size = centre.shape[0]
    return Monomials(
        indices, coordinates, factors, here, weights, scales, size, centre.device
    )


def _monomials(values: Tensor, factors: Tensor) -> Tensor:
    """(m, s) coordinate values → (m, L) products of the named factors."""
    padded = torch.cat([values, torch.ones((len(values), 1), dtype=values.dtype)], 1)
    first, second, third = factors.T
    return padded[:, first] * padded[:, second] * padded[:, third]
