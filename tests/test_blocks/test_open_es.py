"""OpenAI-ES: its estimate of a gradient, its ranks, and one step by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from blocks.algorithm import Information, LossRecord, Node, Observation
from blocks.antithetic import antithetic_gradient
from blocks.low_rank import draw_directions
from blocks.open_es import OpenES, centred_ranks
from blocks.probes import Dense, directions

STD = 0.05


def quadratic(size, rng):
    """Return a function of rows and its gradient at 0: J = g'x + ½ x'Hx, float64."""
    slope = torch.tensor(rng.standard_normal(size))
    root = torch.tensor(rng.standard_normal((size, size)))
    hessian = root @ root.T / size

    def loss(rows):
        return rows @ slope + 0.5 * ((rows @ hessian) * rows).sum(1)

    return loss, slope


def antithetic_values(loss, dirs):
    """(2n,) losses at ±STD·dirs, in the order +0, −0, +1, −1, …."""
    pairs = torch.stack([loss(STD * dirs), loss(-STD * dirs)], 1)
    return pairs.flatten().numpy()


def hadamard(power):
    matrix = torch.ones((1, 1), dtype=torch.float64)
    for _ in range(power):
        upper, lower = torch.cat([matrix] * 2, 1), torch.cat([matrix, -matrix], 1)
        matrix = torch.cat([upper, lower])
    return matrix


def test_raw_estimate__is_exact_over_an_orthogonal_design(rng):
    dirs = hadamard(4)
    loss, slope = quadratic(16, rng)
    estimate = antithetic_gradient(antithetic_values(loss, dirs), STD, Dense(dirs))
    assert float((estimate - slope).norm()) <= 1e-10 * float(slope.norm())


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
def test_raw_estimate__over_random_directions_is_as_near_as_theory_says(rng, kind):
    size, n_pairs = 24, 600
    loss, slope = quadratic(size, rng)
    for seed in range(5):
        dirs = directions(seed, 0, 0, n_pairs, size, kind).double()
        estimate = antithetic_gradient(antithetic_values(loss, dirs), STD, Dense(dirs))
        error = float((estimate - slope).norm() / slope.norm())
        assert error <= 2 * math.sqrt((size + 1) / n_pairs)


def test_ranked_estimate__points_along_the_gradient(rng):
    size, n_pairs = 6, 4000
    loss, slope = quadratic(size, rng)
    dirs = directions(1, 0, 0, n_pairs, size, "gaussian").double()
    ranks = centred_ranks(antithetic_values(loss, dirs))
    estimate = antithetic_gradient(ranks, STD, Dense(dirs))
    assert float(torch.cosine_similarity(estimate, slope, dim=0)) >= 0.99


def test_centred_ranks__are_evenly_spread_over_a_unit():
    np.testing.assert_allclose(
        centred_ranks(np.array([3.0, -1.0, 10.0])), [0.0, -0.5, 0.5], atol=0
    )


def test_centred_ranks__break_ties_by_position():
    np.testing.assert_allclose(
        centred_ranks(np.array([2.0, 1.0, 2.0])), [0.0, -0.5, 0.5], atol=0
    )


def test_centred_ranks__ignore_any_increasing_change_of_scale(rng):
    losses = rng.standard_normal(20)
    np.testing.assert_array_equal(
        centred_ranks(losses), centred_ranks(np.exp(losses) * 100)
    )


# -- one step -------------------------------------------------------------------------

ALGORITHM = OpenES(population_size=4, noise_std=0.1, step_size=0.01, ranked=False)
START = torch.tensor([0.5, -0.5, 1.0])


def begin(seed=9, index=1):
    node = Node(index, 2, None, seed)
    return ALGORITHM.init(node, START, None, np.random.default_rng(0))


def fold(state, losses, steps=(0, 0), step=0, algorithm=ALGORITHM):
    record = LossRecord("run", step, losses, steps)
    observation = Observation(step, 10, Information.SHARED_LOSS, record)
    return algorithm.step(state, observation, None, np.random.default_rng(0))


def test_step__by_hand():
    state, first = begin()
    assert first.probe_std == 0.1
    losses = (1.0, 3.0, 2.5, 2.0)
    dirs = directions(9, 1, 0, 2, 3, "gaussian")
    gradient = (1.0 - 3.0) / 0.4 * dirs[0] + (2.5 - 2.0) / 0.4 * dirs[1]
    _, message = fold(state, losses)
    # Adam's first direction is the sign; the cosine starts at the full step size.
    expected = START - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(message.point, expected, rtol=1e-6, atol=1e-7)


def test_step__rebuilds_the_directions_of_the_step_that_was_scored():
    state, _ = begin()
    losses = (1.0, 3.0, 2.5, 2.0)
    state, _ = fold(state, losses)
    late, _ = fold(state, losses, steps=(0, 0), step=1)
    fresh, _ = fold(state, losses, steps=(0, 1), step=1)
    for after, scored in ((late, 0), (fresh, 1)):
        dirs = directions(9, 1, scored, 2, 3, "gaussian")
        gradient = antithetic_gradient(np.array(losses), 0.1, Dense(dirs))
        moved = after.optimiser.mean - 0.9 * state.optimiser.mean
        torch.testing.assert_close(moved, 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_step__with_a_non_finite_loss_moves_nothing():
    state, first = begin()
    after, message = fold(state, (1.0, float("nan"), 2.0, 3.0))
    assert after is state
    assert torch.equal(message.point, first.point)


def test_joint_probes__let_every_block_estimate_its_own_part(session, problem):
    algorithm = OpenES(population_size=64, step_size=0.05, noise_std=0.02)
    for n_blocks in (1, 3):
        played = session(algorithm, problem("quadratic"), n_blocks)
        assert played.advance(120, n_steps=120).solution_loss() < 0.05


def test_step__with_rank_moves_by_low_rank_directions():
    algorithm = replace(ALGORITHM, rank=1)
    matrices = np.array([[1, 3, 4]])
    start = torch.linspace(-1, 1, 15)
    node = Node(1, 2, None, 9, matrices=matrices)
    state, _ = algorithm.init(node, start, None, np.random.default_rng(0))
    losses = (1.0, 3.0, 2.5, 2.0)
    after, _ = fold(state, losses, algorithm=algorithm)
    dirs = draw_directions(9, 1, 0, 2, 15, "gaussian", 1, matrices).dense()
    gradient = (1.0 - 3.0) / 0.4 * dirs[0] + (2.5 - 2.0) / 0.4 * dirs[1]
    torch.testing.assert_close(after.optimiser.mean, 0.1 * gradient)
    assert np.array_equal(after.matrices, matrices)


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_low_rank_probes__train_a_network(session, problem, n_blocks):
    algorithm = OpenES(population_size=32, step_size=0.1, noise_std=0.02, rank=1)
    played = session(algorithm, problem("mlp"), n_blocks)
    assert any(len(state.matrices) for state in played.states)
    before = played.solution_loss()
    assert played.advance(80, n_steps=80).solution_loss() < 0.3 * before


def test_ranked__is_blind_to_the_scale_of_the_losses():
    ranked = replace(ALGORITHM, ranked=True)
    answers = []
    for scale in (1.0, 1000.0):
        state, _ = begin()
        losses = tuple(scale * x for x in (1.0, 3.0, 2.5, 2.0))
        answers.append(fold(state, losses, algorithm=ranked)[1].point)
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("population_size", 5),
        ("population_size", 0),
        ("noise_std", 0.0),
        ("step_size", -1.0),
        ("rank", -1),
    ],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        OpenES(**{name: value})
