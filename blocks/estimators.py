"""Local estimators of the global loss, fitted on the window of one block.

Each ``fit_*`` returns a surrogate that picks the best of M candidates around the
block's centre, or None where the window says nothing (all pairs equal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from blocks.screening import (
    Draw,
    Winner,
    screen_direction,
    screen_explicit,
    screen_span,
)
from blocks.window import Window


class Surrogate(Protocol):
    """A fitted estimate of the loss at centre + scale·ζ."""

    def screen(
        self,
        n_candidates: int,
        scale: float,
        exploration: float,
        rng: np.random.Generator,
        draw: Draw = "gaussian",
    ) -> Winner:
        """Best of M candidates by exact screening."""

    def explicit(
        self,
        n_candidates: int,
        scale: float,
        exploration: float,
        rng: np.random.Generator,
        draw: Draw = "gaussian",
    ) -> Winner:
        """Best of M candidates, all of them drawn in full."""


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """Ĵ(x) = ĝ·x: the scale of the candidates does not change the choice."""

    gradient: Tensor  # (d,) float32, ĝ

    def screen(
        self,
        n_candidates: int,
        scale: float,
        exploration: float,
        rng: np.random.Generator,
        draw: Draw = "gaussian",
    ) -> Winner:
        """Best of M candidates from one draw (Gaussian only)."""
        return screen_direction(self.gradient, n_candidates, exploration, rng)

    def explicit(
        self,
        n_candidates: int,
        scale: float,
        exploration: float,
        rng: np.random.Generator,
        draw: Draw = "gaussian",
    ) -> Winner:
        """Best of M drawn candidates."""
        unit = self.gradient / self.gradient.norm()
        return screen_explicit(
            lambda z: torch.outer(z @ unit, unit),
            lambda z: (z @ unit).to("cpu", torch.float64),
            unit.shape[0],
            n_candidates,
            exploration,
            rng,
            draw,
            unit.device,
        )


def fit_linear(
    window: Window, centre: Tensor, ridge: float, curvature: float = 0.0
) -> Linear | None:
    """Fit the slope of Ĵ at the centre, with a free intercept per scoring subset.

    Rows R are the pairs minus the centre, s² their mean squared length, s_c² the same
    after subtracting the subset's mean row, F the pairs' membership of subsets:
    K = RR' + (β/s²)(RR')∘(RR') + λs_c² I; ĝ = R'a, where a is the generalised least
    squares residual K⁻¹(J − Fμ). With β = 0 this is ridge least squares with penalty
    λs_c² on the slope alone, (ΔXΔX' + λs_c² I)⁻¹ΔJ with ΔX, ΔJ minus their means. β > 0
    adds the prior variance of an unknown curvature around the centre: pairs far from it
    say less about the slope there.

    Parameters
    ----------
    window : scored pairs, n ≥ 2.
    centre : (d,) float32 — parameters around which candidates are drawn.
    ridge : float — λ > 0, relative to the mean squared displacement.
    curvature : float — β ≥ 0.

    Returns
    -------
    Linear, or None if all pairs are equal or ĝ = 0. Cost: n³ + 2nd.

    Notes
    -----
    Accuracy: rows, their products and R'a are float32 with rounding u = 2⁻²⁴ ≈ 6e-8,
    the solve is float64. Against exact arithmetic on the same rows ĝ is off by at most
    4u‖R‖‖a‖(1 + ‖R'K⁻¹‖‖R‖), with ‖R‖ the larger of the rows' Frobenius norms about
    centre and anchor. ‖a‖ ≤ ‖ΔJ‖/(λs_c²): where rows are nearly dependent and losses
    are in no plane over them, the dual weights are huge and cancel in R'a, and the
    error grows as u/λ. So λ below about 1e-6 may leave no digit, and which digits are
    lost depends on the processor.
    """
    gram = window.gram_about(centre)
    groups = window.groups()
    total = float(gram.trace())
    means = (groups.T @ gram @ groups).diagonal() / groups.sum(0)
    spread = total - float(means.sum())
    if not spread > 1e-12 * total:
        return None
    n = window.n_pairs
    kernel = gram + (curvature * n / total) * gram * gram
    targets = torch.cat([(window.losses - window.losses.mean())[:, None], groups], 1)
    solved = ridge_solve(kernel, targets, ridge * spread / n)
    left, right = solved[:, 1:], solved[:, :1]
    intercepts = torch.linalg.solve(groups.T @ left, groups.T @ right)
    dual = (right - left @ intercepts)[:, 0].to(window.rows.device, torch.float32)
    gradient = (
        window.rows.T @ dual
    )  # the entries of `dual` sum to 0: any origin will do
    return Linear(gradient) if float(gradient.norm()) > 0.0 else None


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """Ĵ(centre + v) = Σ_l a_l (1 + u_l/s²)^p, u = Rv, R the pairs minus the centre."""

    rows: Tensor  # (n, d) float32, pairs minus the anchor
    offset: Tensor  # (d,) float32, centre minus the anchor: R = rows − offset
    gram: Tensor  # (n, n) float64, RR'
    coefficients: Tensor  # (n,) float64, a
    size: float  # s², mean squared distance of the pairs from the centre
    degree: int  # p

    def apply(self, rows: Tensor) -> Tensor:
        """(…, d) → (…, n) float64 host: products with R."""
        products = rows @ self.rows.T - (rows @ self.offset)[..., None]
        return products.to("cpu", torch.float64)

    def adjoint(self, weights: Tensor) -> Tensor:
        """(…, n) → (…, d): R'w."""
        w = weights.to(self.rows.device, torch.float32)
        return w @ self.rows - w.sum(-1)[..., None] * self.offset

    def predict(self, products: Tensor) -> Tensor:
        """(m, n) float64 u → (m,) float64 Ĵ."""
        return (1.0 + products / self.size) ** self.degree @ self.coefficients

    def screen(
        self,
        n_candidates: int,
        scale: float,
        exploration: float,
        rng: np.random.Generator,
        draw: Draw = "gaussian",
    ) -> Winner:
        """Best of M vectors of inner products (Gaussian only)."""
        return screen_span(
            self.gram,
            lambda eta: self.apply(eta[None])[0],
            self.adjoint,
            lambda products: self.predict(scale * products),
            self.rows.shape[1],
            n_candidates,
            exploration,
            rng,
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
        inverse = torch.linalg.pinv(self.gram, rtol=1e-10, hermitian=True)
        return screen_explicit(
            lambda z: self.adjoint(self.apply(z) @ inverse),
            lambda z: self.predict(scale * self.apply(z)),
            self.rows.shape[1],
            n_candidates,
            exploration,
            rng,
            draw,
            self.rows.device,
        )


def fit_kernel(
    window: Window, centre: Tensor, ridge: float, degree: int
) -> Kernel | None:
    """Fit polynomial kernel ridge: all monomials up to order p, multinomial weights.

    Rows are displacements from the centre; losses are taken minus their subset's mean.

    Parameters
    ----------
    window : scored pairs.
    centre : (d,) float32 — parameters around which candidates are drawn.
    ridge : float — λ > 0, relative to the mean of the kernel's diagonal.
    degree : int — p, 1 to 3.

    Returns
    -------
    Kernel, or None if all pairs lie on the centre. Cost: n³ + nd.
    """
    offset = centre - window.anchor
    gram = window.gram_about(centre)
    size = float(gram.trace()) / window.n_pairs
    if not size > 0.0:
        return None
    kernel = (1.0 + gram / size) ** degree
    penalty = ridge * float(kernel.trace()) / window.n_pairs
    coefficients = ridge_solve(kernel, window.centred(window.losses), penalty)
    return Kernel(window.rows, offset, gram, coefficients, size, degree)


def ridge_solve(gram: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """(gram + penalty·I)⁻¹ targets in float64."""
    eye = torch.eye(len(gram), dtype=gram.dtype)
    solution: Tensor = torch.linalg.solve(gram + penalty * eye, targets)
    return solution
