"""Candidate screening: the best of M random candidates, without drawing all of them.

A surrogate of the loss that sees a candidate ζ only through a few of its projections
does not need the candidate: draw M vectors of projections, pick the best, build only
the winner. Candidates are Gaussian, N(0, P + ρ²(I − P)) with P the projection onto what
the surrogate sees and ρ the exploration; the M-th is the current point, ζ = 0.
``screen_explicit`` draws every candidate in full: the reference for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Draw = Literal["gaussian", "uniform"]

_CHUNK = 64  # candidates held at once by the explicit form
_RANK_TOLERANCE = 1e-10  # eigenvalues below this share of the largest count as zero


class Winner(NamedTuple):
    """The chosen candidate ζ = seen + unseen, both (d,) float32."""

    seen: Tensor  # part in the subspace that the surrogate sees
    unseen: Tensor  # the rest, already scaled by ρ

    @property
    def candidate(self) -> Tensor:
        """ζ, (d,)."""
        return self.seen + self.unseen


def gaussian(rng: np.random.Generator, size: int, device: torch.device) -> Tensor:
    """(size,) float32 standard normal, drawn on the host, in torch's own memory."""
    values = torch.from_numpy(rng.standard_normal(size, dtype=np.float32))
    return torch.empty(size, device=device).copy_(values)


def unguided(
    size: int, exploration: float, device: torch.device, rng: np.random.Generator
) -> Winner:
    """Random move for a block whose surrogate sees nothing: ζ = ρη."""
    eta = gaussian(rng, size, device)
    return Winner(torch.zeros_like(eta), eta.mul_(exploration))


def screen_direction(
    gradient: Tensor, n_candidates: int, exploration: float, rng: np.random.Generator
) -> Winner:
    """Return the best of M Gaussian candidates under a linear surrogate ĝ·ζ, in O(d).

    The surrogate sees span(ĝ) alone, so ζ = tĝ/‖ĝ‖ + ρ(I − ĝĝ'/‖ĝ‖²)η, with t the
    smallest of M − 1 standard normals, drawn by inversion:
    t = Φ⁻¹(1 − U^{1/(M−1)}), and the current point (ζ = 0) when that is positive.

    Parameters
    ----------
    gradient : (d,) float32 — ĝ, finite, not zero.
    n_candidates : int — M ≥ 2, the current point being one of them.
    exploration : float — ρ ≥ 0.
    rng : generator of this step.

    Returns
    -------
    Winner — distributed as that of ``screen_explicit``.

    References
    ----------
    Order statistics of the normal law; derivation in docs/algorithms.
    """
    unit = gradient / gradient.norm()
    t = smallest_normal(n_candidates - 1, rng)
    eta = gaussian(rng, gradient.shape[0], gradient.device)
    if t >= 0.0:
        return Winner(torch.zeros_like(eta), torch.zeros_like(eta))
    eta -= torch.dot(eta, unit) * unit
    return Winner(unit * t, eta.mul_(exploration))


def smallest_normal(n: int, rng: np.random.Generator) -> float:
    """Smallest of n independent standard normals, from one uniform draw."""
    uniform = 1.0 - rng.random()  # (0, 1]
    p = -np.expm1(np.log(uniform) / n)
    tiny = np.finfo(np.float64).tiny
    return NormalDist().inv_cdf(float(np.clip(p, tiny, 1.0 - 1e-16)))


def screen_span(
    gram: Tensor,
    apply: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    size: int,
    n_candidates: int,
    exploration: float,
    rng: np.random.Generator,
) -> Winner:
    """Return the best of M candidates under a surrogate of the inner products u = Rζ.

    RR' = VΛV' with the r eigenvalues above 1e-10·max kept (windows are singular as a
    rule, so neither Cholesky nor a pseudo-inverse will do); ε ~ N(0, I_r), u = VΛ^½ε
    for M − 1 candidates, and for the best ζ = Qε + ρ(I − QQ')η with Q = R'VΛ^−½
    applied, never formed. Cost: n³ + M·n·r + 3nd.

    Parameters
    ----------
    gram : (n, n) float64, host — RR'.
    apply : (d,) → (n,) float64, host — η ↦ Rη.
    adjoint : (n,) float64, host → (d,) — w ↦ R'w.
    score : (m, n) float64 → (m,) float64 — surrogate of rows u; smaller is better.
    size : int — d.
    n_candidates, exploration, rng : as in ``screen_direction``.
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _RANK_TOLERANCE * values[-1]
    device = adjoint(torch.zeros(gram.shape[0], dtype=torch.float64)).device
    if not bool(values[-1] > 0.0):
        return unguided(size, exploration, device, rng)
    values, vectors = values[kept], vectors[:, kept]
    draws = torch.tensor(rng.standard_normal((n_candidates - 1, len(values))))
    scores = score(draws @ (vectors * values.sqrt()).T)
    best = int(scores.argmin())
    eta = gaussian(rng, size, device)
    here = score(torch.zeros((1, gram.shape[0]), dtype=torch.float64))
    if not bool(scores[best] < here[0]):
        return Winner(torch.zeros_like(eta), torch.zeros_like(eta))
    seen = adjoint(vectors @ (draws[best] / values.sqrt()))
    eta -= adjoint(vectors @ ((vectors.T @ apply(eta)) / values))
    return Winner(seen, eta.mul_(exploration))


def screen_coordinates(
    coordinates: Tensor,
    score: Callable[[Tensor], Tensor],
    size: int,
    n_candidates: int,
    exploration: float,
    rng: np.random.Generator,
    draw: Draw = "gaussian",
    device: torch.device | None = None,
) -> Winner:
    """Return the best of M candidates under a surrogate of some coordinates ζ_S only.

    Exact for independent coordinates of any law: ζ_S is drawn M − 1 times, the others
    once, scaled by ρ.

    Parameters
    ----------
    coordinates : (s,) int64 — S, distinct.
    score : (m, s) float64 → (m,) float64 — surrogate of rows ζ_S; smaller is better.
    draw : "gaussian" (unit variance) or "uniform" on [−1, 1] (variance ⅓).
    size, n_candidates, exploration, rng : as in ``screen_span``.
    """
    draws = torch.tensor(_draw(rng, (n_candidates - 1, len(coordinates)), draw))
    scores = score(draws.to(torch.float64))
    best = int(scores.argmin())
    rest = torch.tensor(_draw(rng, (size,), draw))
    here = score(torch.zeros((1, len(coordinates)), dtype=torch.float64))
    seen = torch.zeros(size)
    if bool(scores[best] < here[0]):
        seen[coordinates] = draws[best]
        rest[coordinates] = 0.0
    else:
        rest = torch.zeros(size)
    return Winner(seen.to(device), rest.mul_(exploration).to(device))


def screen_explicit(
    project: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    size: int,
    n_candidates: int,
    exploration: float,
    rng: np.random.Generator,
    draw: Draw = "gaussian",
    device: torch.device | None = None,
) -> Winner:
    """Return the best of M candidates, every one of them drawn: cost M·d and more.

    Parameters
    ----------
    project : (m, d) → (m, d) — projection P of rows onto what the surrogate sees.
    score : (m, d) → (m,) float64, host — surrogate of whole candidates.
    draw, size, n_candidates, exploration, rng : as in ``screen_coordinates``.
    """
    best_score = float(score(torch.zeros((1, size), device=device))[0])
    winner = Winner(torch.zeros(size, device=device), torch.zeros(size, device=device))
    left = n_candidates - 1
    while left > 0:
        values = torch.from_numpy(_draw(rng, (min(left, _CHUNK), size), draw))
        drawn = torch.empty(values.shape, device=device).copy_(values)
        left -= len(drawn)
        seen = project(drawn)
        unseen = exploration * (drawn - seen)
        scores = score(seen + unseen)
        best = int(scores.argmin())
        if float(scores[best]) < best_score:
            best_score = float(scores[best])
            winner = Winner(seen[best].clone(), unseen[best].clone())
    return winner


def _draw(rng: np.random.Generator, shape: tuple[int, ...], draw: Draw) -> np.ndarray:
    if draw == "gaussian":
        return rng.standard_normal(shape, dtype=np.float32)
    return rng.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
