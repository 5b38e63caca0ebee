"""Local problems of NEXT: a convex loss on a linearised network, and their solvers.

Over one block of parameters (all others stay), p the move away from w:

    F(p) = s Σ_n ℓ_n(logits_n + (Jac p)_n) + c'p + ν/2 ‖p‖² + λ₁ ‖w + p‖₁

Smooth problems (λ₁ = 0) are solved by Newton's method, exact in one step for the
squared loss: by conjugate gradients, or in the space of the samples' outputs where that
is small. With λ₁ > 0: accelerated proximal gradient steps (Beck & Teboulle 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blocks.linearised import Linearised, Product, loss_curvature, loss_slope

_HALVINGS = 30  # of a Newton step, and doublings of a proximal step's curvature
_ARMIJO = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """One block's problem: d parameters of P."""

    here: Linearised
    start: int  # the block is θ[start:stop]
    stop: int
    scale: float  # s, per sample
    linear: Tensor  # (d,) c
    proximity: float  # ν > 0
    l1: float  # λ₁ ≥ 0
    params: Tensor  # (d,) w

    @classmethod
    def of_part(
        cls,
        here: Linearised,
        part: tuple[int, int],
        scale: float,
        linear: Tensor,
        proximity: float,
        l1: float,
        params: Tensor,
    ) -> Surrogate:
        """The problem of θ[start:stop], from vectors of the whole (P,)."""
        mine = slice(*part)
        return cls(here, *part, scale, linear[mine], proximity, l1, params[mine])

    def ahead(self, p: Tensor) -> Tensor:
        """(b, n_classes) Jac·p of the block."""
        whole = torch.zeros_like(self.here.gradient)
        whole[self.start : self.stop] = p
        return self.here.jvp(whole)

    def back(self, u: Tensor) -> Tensor:
        """(d,) the block's part of Jac'u."""
        return self.here.vjp(u)[self.start : self.stop]

    def first_slope(self) -> Tensor:
        """(d,) gradient of the smooth part at p = 0, which costs no product."""
        mine = self.here.gradient[self.start : self.stop]
        return self.scale * len(self.here.targets) * mine + self.linear

    def smooth(self, p: Tensor, image: Tensor) -> tuple[float, Tensor]:
        """Value of F without λ₁, and s·∂ℓ at logits + ``image`` (= Jac·p)."""
        value, slope = loss_slope(self.here.losses, self.here.logits + image)
        value = self.scale * value + _dot(self.linear, p)
        return value + self.proximity / 2 * _dot(p, p), self.scale * slope


def solve(problem: Surrogate, newton_steps: int, inner_steps: int) -> Tensor:
    """Return an approximate minimiser p (d,) of F.

    Parameters
    ----------
    newton_steps : int — times that the loss's curvature is taken (λ₁ = 0).
    inner_steps : int — steps of conjugate gradients a Newton step, or of the proximal
        method altogether. Each costs two products with the Jacobian.

    Raises
    ------
    ValueError — if the loss is found not to be convex in the logits (λ₁ = 0).
    """
    if problem.l1:
        return _proximal(problem, inner_steps)
    return _newton(problem, newton_steps, inner_steps)


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """Return sign(x)·max(|x| − threshold, 0)."""
    return x.sign() * (x.abs() - threshold).clamp(min=0)


def _dot(x: Tensor, y: Tensor) -> float:
    return float(x.double() @ y.double())


def _newton(problem: Surrogate, newton_steps: int, inner_steps: int) -> Tensor:
    p = torch.zeros_like(problem.params)
    image = torch.zeros_like(problem.here.logits)
    slope = problem.first_slope()
    first = math.sqrt(_dot(slope, slope))
    small = 10 * torch.finfo(p.dtype).eps
    rows = _jacobian(problem) if image.numel() <= 2 * inner_steps else None
    for k in range(newton_steps):
        if k:
            outer = problem.smooth(p, image)[1]
            slope = problem.back(outer) + problem.linear + problem.proximity * p
        # Also where a loss is not finite: there is nothing to go by.
        if not math.sqrt(_dot(slope, slope)) > small * first:
            return p
        bend = loss_curvature(problem.here.losses, problem.here.logits + image)
        if rows is None:
            direction = _conjugate_gradients(problem, bend, -slope, inner_steps)
        else:
            direction = _sample_space(problem, bend, -slope, rows)
        change = problem.ahead(direction)
        size = _line_search(
            problem, p, image, direction, change, _dot(slope, direction)
        )
        p, image = p + size * direction, image + size * change
    return p


def _line_search(
    problem: Surrogate,
    p: Tensor,
    image: Tensor,
    direction: Tensor,
    change: Tensor,
    slope: float,
) -> float:
    """Step size that lowers F enough (Armijo), by halving from 1; no products."""
    now = problem.smooth(p, image)[0]
    slack = 10 * torch.finfo(p.dtype).eps * abs(now)
    size = 1.0
    for _ in range(_HALVINGS):
        value = problem.smooth(p + size * direction, image + size * change)[0]
        if value <= now + _ARMIJO * size * slope + slack:
            break
        size /= 2
    return size


def _conjugate_gradients(
    problem: Surrogate, bend: Product, wanted: Tensor, n_steps: int
) -> Tensor:
    """Solve (s Jac'H Jac + νI) x = ``wanted``, H by ``bend``, from x = 0."""
    x = torch.zeros_like(wanted)
    residual, direction = wanted, wanted
    square = _dot(residual, residual)
    enough = (10 * torch.finfo(x.dtype).eps) ** 2 * square
    for _ in range(n_steps):
        curved = problem.back(problem.scale * bend(problem.ahead(direction)))
        curved = curved + problem.proximity * direction
        curvature = _dot(direction, curved)
        _check_convex(curvature)
        x = x + (square / curvature) * direction
        residual = residual - (square / curvature) * curved
        before, square = square, _dot(residual, residual)
        if not square > enough:
            break
        direction = residual + (square / before) * direction
    return x


def _check_convex(curvature: float) -> None:
    if curvature <= 0:
        raise ValueError(
            '`loss` must be convex in the logits for `linearisation` = "partial"; got '
            f'a direction of curvature {curvature:.3g}. Use `linearisation` = "full".'
        )


def _jacobian(problem: Surrogate) -> Tensor:
    """(b·n_classes, d) the Jacobian, one product a row."""
    flat = torch.zeros_like(problem.here.logits).reshape(-1)
    rows = []
    for i in range(len(flat)):
        unit = flat.clone()
        unit[i] = 1.0
        rows.append(problem.back(unit.view_as(problem.here.logits)))
    return torch.stack(rows)


def _sample_space(
    problem: Surrogate, bend: Product, wanted: Tensor, rows: Tensor
) -> Tensor:
    """The same system by (νI + s H Jac Jac')⁻¹, of size b·n_classes, in float64."""
    b, n_classes = problem.here.logits.shape
    columns = []
    for c in range(n_classes):
        unit = torch.zeros_like(problem.here.logits)
        unit[:, c] = 1.0  # H has a block of its own for each sample
        columns.append(problem.scale * bend(unit))
    blocks = torch.stack(columns, dim=2).double()  # (b, n_classes, n_classes)
    _check_convex(float(torch.linalg.eigvalsh(blocks).min()) + problem.proximity)
    rows, wide = rows.double(), wanted.double()

    def times_h(x: Tensor) -> Tensor:
        bent: Tensor = blocks @ x.view(b, n_classes, -1)
        return bent.reshape(b * n_classes, -1)

    system = times_h(rows @ rows.T)
    system.diagonal().add_(problem.proximity)
    inner = torch.linalg.solve(system, times_h((rows @ wide)[:, None]))[:, 0]
    found: Tensor = (wide - rows.T @ inner) / problem.proximity
    return found.to(wanted.dtype)


def _proximal(problem: Surrogate, n_steps: int) -> Tensor:
    """Accelerated proximal gradient steps; the curvature is doubled where too small."""
    # point: where the gradient is taken; p, image: the last iterate and its Jac·p
    nu, w = problem.proximity, problem.params
    p = point = torch.zeros_like(w)
    image = point_image = torch.zeros_like(problem.here.logits)
    slope = problem.first_slope()
    curvature = nu + _curvature_along(problem, slope)
    for k in range(n_steps):
        outer = problem.smooth(point, point_image)[1]
        if k:
            slope = problem.back(outer) + problem.linear + nu * point
        for _ in range(_HALVINGS):
            free = w + point - slope / curvature
            new = soft_threshold(free, problem.l1 / curvature) - w
            new_image, gap = problem.ahead(new), new - point
            # What the gradient has changed by, along the way, says more than values.
            bent = problem.smooth(new, new_image)[1] - outer
            across = _dot(bent.reshape(-1), (new_image - point_image).reshape(-1))
            if not across > (curvature - nu) * _dot(gap, gap):
                break
            curvature *= 2
        root = math.sqrt(nu / curvature)
        ahead = (1 - root) / (1 + root)
        point = new + ahead * (new - p)
        point_image = new_image + ahead * (new_image - image)
        p, image = new, new_image
        if not _dot(gap, gap) > (torch.finfo(p.dtype).eps ** 2) * _dot(w + p, w + p):
            break
    return p


def _curvature_along(problem: Surrogate, direction: Tensor) -> float:
    """Curvature of the loss term along a direction, a first guess of the largest."""
    square = _dot(direction, direction)
    if not square > 0:
        return problem.proximity
    image = problem.ahead(direction)
    bend = loss_curvature(problem.here.losses, problem.here.logits)
    bent = problem.scale * bend(image)
    return max(_dot(image.reshape(-1), bent.reshape(-1)) / square, 0.0)
