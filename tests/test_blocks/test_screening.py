import numpy as np
import pytest
import torch
from scipy import stats

from blocks.estimators import fit_kernel, fit_linear
from blocks.monomials import fit_monomials
from blocks.screening import smallest_normal
from blocks.window import Window

D, N_PAIRS, N_WINNERS, N_CANDIDATES, SCALE = 24, 8, 4_000, 20, 0.3


def make_surrogate(estimator, singular):
    """Surrogate on a small window; singular: with a pair twice, and the centre."""
    g = torch.Generator().manual_seed(3)
    centre = torch.randn(D, generator=g)
    points = centre + 0.3 * torch.randn(N_PAIRS, D, generator=g)
    if singular:
        points[3] = points[5]
        points[-1] = centre
    losses = torch.rand(N_PAIRS, generator=g, dtype=torch.float64).tolist()
    window = Window.empty(centre).append(points, losses, 0, N_PAIRS)
    if estimator == "linear":
        return fit_linear(window, centre, 1e-4)
    if estimator == "kernel":
        return fit_kernel(window, centre, 1e-2, 3)
    indices = np.array([[0, -1, -1], [2, 5, -1], [7, 5, 2], [9, 9, 1]])
    return fit_monomials(window, centre, 10.0, indices)


def winners(choose, exploration, rng, draw="gaussian"):
    drawn = [
        choose(N_CANDIDATES, SCALE, exploration, rng, draw).candidate
        for _ in range(N_WINNERS)
    ]
    return torch.stack(drawn).numpy().astype(np.float64)


def seen_basis(surrogate, estimator):
    """Orthonormal rows that span what the surrogate sees."""
    if estimator == "linear":
        return (surrogate.gradient / surrogate.gradient.norm()).numpy()[None]
    if estimator == "kernel":
        rows = (surrogate.rows - surrogate.offset).numpy().astype(np.float64)
        _, values, vectors = np.linalg.svd(rows, full_matrices=False)
        return vectors[values > 1e-5 * values[0]]
    return np.eye(D)[surrogate.coordinates.numpy()]


def statistics_of(samples, basis):
    """The scalar views in which two samples of winners are compared."""
    direction = np.random.default_rng(8).standard_normal(D)
    return {
        "first seen direction": samples @ basis[0],
        "norm": np.linalg.norm(samples, axis=1),
        "norm in span": np.linalg.norm(samples @ basis.T, axis=1),
        "random direction": samples @ direction,
        "coordinate": samples[:, 2],
    }


@pytest.mark.parametrize(
    ("estimator", "singular", "exploration"),
    [
        (estimator, singular, exploration)
        for estimator in ("linear", "kernel")
        for singular in (False, True)
        for exploration in (1.0, 0.3)
    ]
    + [("monomials", False, 0.3)],
)
def test_screening__winners_are_distributed_as_explicit_ones(
    estimator, singular, exploration
):
    surrogate = make_surrogate(estimator, singular)
    exact = winners(surrogate.screen, exploration, np.random.default_rng(1))
    explicit = winners(surrogate.explicit, exploration, np.random.default_rng(2))
    basis = seen_basis(surrogate, estimator)
    left, right = statistics_of(exact, basis), statistics_of(explicit, basis)
    for name, values in left.items():
        assert stats.ks_2samp(values, right[name]).pvalue > 1e-3, name


def test_screening__uniform_candidates_are_told_apart_by_their_norm():
    surrogate = make_surrogate("linear", singular=False)
    gaussian = winners(surrogate.screen, 1.0, np.random.default_rng(1))
    uniform = winners(surrogate.explicit, 1.0, np.random.default_rng(2), "uniform")
    uniform *= np.sqrt(3.0)  # equal variance
    norms = [np.linalg.norm(sample, axis=1) for sample in (gaussian, uniform)]
    assert stats.ks_2samp(*norms).pvalue < 1e-6


def test_screening__uniform_monomial_winners_are_distributed_as_explicit_ones():
    surrogate = make_surrogate("monomials", singular=False)
    basis = seen_basis(surrogate, "monomials")
    exact = winners(surrogate.screen, 1.0, np.random.default_rng(1), "uniform")
    explicit = winners(surrogate.explicit, 1.0, np.random.default_rng(2), "uniform")
    left, right = statistics_of(exact, basis), statistics_of(explicit, basis)
    for name, values in left.items():
        assert stats.ks_2samp(values, right[name]).pvalue > 1e-3, name


@pytest.mark.parametrize("estimator", ["linear", "kernel", "monomials"])
def test_screening__seen_and_unseen_parts_are_orthogonal(estimator):
    surrogate = make_surrogate(estimator, singular=True)
    basis = torch.from_numpy(seen_basis(surrogate, estimator)).float()
    winner = surrogate.screen(100, SCALE, 1.0, np.random.default_rng(4))
    assert float((basis @ winner.unseen).abs().max()) < 1e-5
    assert torch.allclose(basis.T @ (basis @ winner.seen), winner.seen, atol=1e-5)


def test_smallest_normal__has_the_law_of_a_minimum():
    rng = np.random.default_rng(5)
    fast = [smallest_normal(999, rng) for _ in range(N_WINNERS)]
    slow = rng.standard_normal((N_WINNERS, 999)).min(1)
    assert stats.ks_2samp(fast, slow).pvalue > 1e-3
    assert np.mean(fast) == pytest.approx(-3.24, abs=0.03)


def test_screening__current_point_wins_when_no_candidate_is_better():
    surrogate = make_surrogate("linear", singular=False)
    rng = np.random.default_rng(6)
    won = [surrogate.screen(2, SCALE, 1.0, rng).candidate for _ in range(400)]
    share = np.mean([not bool(candidate.any()) for candidate in won])
    assert share == pytest.approx(0.5, abs=0.1)  # 4 standard errors
