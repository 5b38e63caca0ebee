import numpy as np
import pytest
import torch

from blocks.estimators import fit_kernel, fit_linear
from blocks.monomials import draw_monomials, fit_monomials
from blocks.window import Window


def window_of(points, losses, subset=None, limit=None):
    window = Window.empty(points[0])
    for i, point in enumerate(points):
        group = 0 if subset is None else subset[i]
        window = window.append(point[None], [losses[i]], group, limit or len(points))
    return window


def test_fit_linear__equals_primal_ridge_with_free_intercept():
    g = torch.Generator().manual_seed(0)
    points = 0.01 * torch.randn(12, 30, generator=g) + 1.0
    losses = torch.rand(12, generator=g).tolist()
    window = window_of(points, losses)
    x = points.to(torch.float64)
    x = x - x.mean(0)
    y = torch.tensor(losses, dtype=torch.float64)
    penalty = 1e-2 * float((x @ x.T).trace()) / 12
    eye = torch.eye(30, dtype=torch.float64)
    primal = torch.linalg.solve(x.T @ x + penalty * eye, x.T @ (y - y.mean()))
    got = fit_linear(window, points[3], 1e-2).gradient
    # float32 displacements of size 1e-2 from an anchor: about 1e-5 relative.
    assert torch.allclose(got.to(torch.float64), primal, rtol=1e-3, atol=1e-3)


def test_fit_linear__finds_the_slope_of_a_plane_whatever_the_subset_offsets():
    g = torch.Generator().manual_seed(1)
    slope = torch.randn(5, generator=g)
    points = torch.randn(40, 5, generator=g)
    subset = [i // 14 for i in range(40)]
    losses = [float(p @ slope) + 10.0 * s for p, s in zip(points, subset, strict=True)]
    gradient = fit_linear(window_of(points, losses, subset), points[0], 1e-9).gradient
    assert torch.allclose(gradient, slope, atol=1e-4)


def test_fit__window_without_information_gives_no_surrogate():
    points = torch.ones(4, 6)
    window = window_of(points, [1.0, 2.0, 3.0, 4.0])
    indices = np.array([[0, 1, -1]])
    assert fit_linear(window, points[0], 1e-4) is None
    assert fit_kernel(window, points[0], 1e-4, 2) is None
    assert fit_monomials(window, points[0], 10.0, indices) is None


def test_fit_linear__equal_losses_give_no_surrogate():
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert fit_linear(window_of(points, [1.0] * 4), points[0], 1e-4) is None


def test_fit_kernel__of_order_two_reproduces_a_quadratic():
    g = torch.Generator().manual_seed(2)
    points = torch.randn(40, 4, generator=g)
    centre = torch.full((4,), 0.3)
    target = torch.tensor([1.0, -0.5, 0.2, 0.0])
    losses = [float((p - target).square().sum()) for p in points]
    kernel = fit_kernel(window_of(points, losses), centre, 1e-10, 2)
    steps = torch.randn(10, 4, generator=g)
    got = kernel.predict(kernel.apply(steps)) + np.mean(losses)
    true = (centre + steps - target).square().sum(1).to(torch.float64)
    assert torch.allclose(got, true, atol=1e-3)


def test_fit_monomials__reproduces_a_monomial_loss():
    g = torch.Generator().manual_seed(3)
    points = torch.randn(60, 6, generator=g)
    losses = [float(3 * p[0] * p[2] + p[1] ** 3 - 2 * p[5]) for p in points]
    indices = np.array([[0, 2, -1], [1, 1, 1], [5, -1, -1], [3, -1, -1]])
    window = window_of(points, losses)
    centre = torch.zeros(6)
    fitted = fit_monomials(window, centre, 1e-6, indices)
    steps = torch.randn(10, 6, generator=g).to(torch.float64)
    got = fitted.predict(steps[:, fitted.coordinates])
    true = 3 * steps[:, 0] * steps[:, 2] + steps[:, 1] ** 3 - 2 * steps[:, 5]
    got, true = got - got.mean(), true - true.mean()
    assert torch.allclose(got, true, atol=1e-4)
    assert fitted.strongest(3).tolist() == sorted(
        fitted.strongest(3).tolist(), key=lambda m: -fitted_weight(fitted, m)
    )
    assert [3, -1, -1] not in fitted.strongest(3).tolist()


def fitted_weight(fitted, monomial):
    position = fitted.indices.tolist().index(monomial)
    return float(fitted.weights[position].abs())


def test_fit_monomials__row_that_is_constant_over_the_window_is_dropped():
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(4))
    points[:, 1] = 0.5
    losses = [float(p[0]) for p in points]
    indices = np.array([[1, -1, -1], [0, -1, -1]])
    fitted = fit_monomials(window_of(points, losses), points[0], 1e-3, indices)
    assert fitted.scales[0] == 0.0
    assert fitted.strongest(1).tolist() == [[0, -1, -1]]


def test_draw_monomials__keeps_the_kept_and_draws_all_orders(rng):
    kept = np.array([[4, 2, -1]])
    drawn = draw_monomials(rng, 10, 200, kept)
    assert drawn.shape == (200, 3)
    assert drawn[0].tolist() == [4, 2, -1]
    orders = (drawn >= 0).sum(1)
    assert set(orders.tolist()) == {1, 2, 3}
    assert drawn.max() < 10


@pytest.mark.parametrize("estimator", ["linear", "kernel"])
def test_fit__duplicate_pairs_are_no_error(estimator):
    points = torch.randn(6, 5, generator=torch.Generator().manual_seed(5))
    points[2:] = points[0]
    window = window_of(points, [0.1, 0.7, 0.2, 0.1, 0.15, 0.12])
    rng = np.random.default_rng(0)
    if estimator == "linear":
        surrogate = fit_linear(window, points[0], 1e-4)
    else:
        surrogate = fit_kernel(window, points[0], 1e-4, 3)
    winner = surrogate.screen(100, 0.1, 0.3, rng)
    assert torch.isfinite(winner.candidate).all()


def exact_fit(window, centre, ridge, curvature=0.0):
    """Slope on the window's rows in float64, and the error that `fit_linear` states."""
    rows = window.rows.to(torch.float64)
    about = rows - (centre - window.anchor).to(torch.float64)
    n, gram, groups = window.n_pairs, about @ about.T, window.groups()
    penalty = ridge * float(window.centred(rows).square().sum()) / n
    kernel = gram + curvature * n / float(gram.trace()) * gram.square()
    kernel += penalty * torch.eye(n, dtype=torch.float64)
    inverse = torch.linalg.inv(kernel)
    intercepts = torch.linalg.solve(
        groups.T @ inverse @ groups, groups.T @ inverse @ window.losses
    )
    dual = inverse @ (window.losses - groups @ intercepts)
    size = max(float(rows.norm()), float(about.norm()))
    gain = float(torch.linalg.matrix_norm(about.T @ inverse, 2))
    error = 4 * 2.0**-24 * size * float(dual.norm()) * (1 + gain * size)
    return rows.T @ dual, error


def line():
    """Losses x² of nine pairs along a line that starts at the minimum."""
    points = torch.zeros(9, 3)
    points[:, 0] = torch.linspace(0.0, 0.8, 9)
    return window_of(points, points[:, 0].square().tolist()), points[2]


def walk(d, n, wide):
    """Pairs of a random walk of small steps: rows that are nearly dependent."""
    g = torch.Generator().manual_seed(d)
    steps = 1e-3 * torch.randn(n, d, generator=g)
    steps[:, wide:] *= 1e-3
    points = 0.1 * torch.randn(d, generator=g) + steps.cumsum(0)
    losses = torch.rand(n, generator=g).tolist()
    return window_of(points, losses, [i % 2 for i in range(n)], 30), points[-1]


WINDOWS = {
    "line": line,
    "few dimensions": lambda: walk(5, 50, 5),
    "nearly few": lambda: walk(200, 50, 8),
    "block of a network": lambda: walk(3140, 50, 3140),
}


@pytest.mark.parametrize("curvature", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ridge", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("name", WINDOWS)
def test_fit_linear__is_as_accurate_as_stated(name, ridge, curvature):
    window, centre = WINDOWS[name]()
    got = fit_linear(window, centre, ridge, curvature).gradient.to(torch.float64)
    exact, error = exact_fit(window, centre, ridge, curvature)
    assert float((got - exact).norm()) <= error


def test_fit_linear__curvature_prior_gives_the_slope_at_the_centre():
    # Pairs along a line away from the minimum of x²: the plain slope is that of their
    # middle, the one that expects curvature is that of the centre. The default ridge
    # shrinks them by less than 1e-4; the rest is what the accuracy stated allows.
    window, centre = line()
    for curvature, slope in (0.0, 0.8), (1.0, 0.4):
        got = float(fit_linear(window, centre, 1e-4, curvature).gradient[0])
        _, error = exact_fit(window, centre, 1e-4, curvature)
        assert error < 0.05
        assert got == pytest.approx(slope, abs=error + 1e-4)
