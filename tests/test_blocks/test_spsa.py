"""SPSA: its estimate of a gradient, and one step by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blocks.algorithm import Information, LossRecord, Node, Observation
from blocks.antithetic import antithetic_gradient
from blocks.open_es import OpenES
from blocks.probes import Dense, directions
from blocks.spsa import SPSA

STD = 0.05


def quadratic(size, rng):
    """Return a function of rows and its gradient at 0: J = g'x + ½ x'Hx, float64."""
    slope = torch.tensor(rng.standard_normal(size))
    root = torch.tensor(rng.standard_normal((size, size)))
    hessian = root @ root.T / size
    return lambda rows: rows @ slope + 0.5 * ((rows @ hessian) * rows).sum(1), slope


def estimate(loss, dirs):
    values = torch.stack([loss(STD * dirs), loss(-STD * dirs)], 1).flatten()
    return antithetic_gradient(values.numpy(), STD, Dense(dirs))


def test_raw_estimate__is_exact_over_a_complete_design_of_signs(rng):
    signs = torch.ones((1, 1), dtype=torch.float64)
    for _ in range(5):  # Hadamard: orthogonal rows of ±1
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    loss, slope = quadratic(32, rng)
    error = (estimate(loss, signs) - slope).norm() / slope.norm()
    assert float(error) <= 1e-10


@pytest.mark.parametrize("n_pairs", [50, 600])
def test_raw_estimate__over_random_signs_is_as_near_as_theory_says(rng, n_pairs):
    size = 24
    loss, slope = quadratic(size, rng)
    for seed in range(5):
        dirs = directions(seed, 0, 0, n_pairs, size, SPSA().probe_kind).double()
        error = float((estimate(loss, dirs) - slope).norm() / slope.norm())
        assert error <= 2 * math.sqrt((size + 1) / n_pairs)


def test_directions__are_signs():
    dirs = directions(0, 0, 0, 8, 100, SPSA().probe_kind)
    assert set(dirs.flatten().tolist()) == {-1.0, 1.0}


START = torch.tensor([0.5, -0.5, 1.0])


def fold(algorithm, losses, seed=9, index=1):
    node = Node(index, 2, None, seed)
    rng = np.random.default_rng(0)
    state, first = algorithm.init(node, START, None, rng)
    record = LossRecord("run", 0, losses, (0, 0))
    observation = Observation(0, 10, Information.SHARED_LOSS, record)
    return state, first, algorithm.step(state, observation, None, rng)


def test_step__by_hand():
    algorithm = SPSA(noise_std=0.1, step_size=0.01, epsilon=0.5)
    _, first, (_, message) = fold(algorithm, (1.0, 3.0))
    assert first.probe_std == 0.1
    gradient = (1.0 - 3.0) / 0.2 * directions(9, 1, 0, 1, 3, "sign")[0]
    # Adam's first direction: g/(|g| + ε).
    expected = START - 0.01 * gradient / (gradient.abs() + 0.5)
    torch.testing.assert_close(message.point, expected, rtol=1e-6, atol=1e-7)


def test_step__is_evolution_without_ranks_and_with_signs():
    losses = (1.0, 3.0, 2.5, 2.0)
    ours = SPSA(pairs=2, noise_std=0.1, step_size=0.01, epsilon=1e-8)
    theirs = OpenES(
        population_size=4,
        noise_std=0.1,
        step_size=0.01,
        final_fraction=ours.final_fraction,
        ranked=False,
        probe_kind="sign",
    )
    assert torch.equal(fold(ours, losses)[2][1].point, fold(theirs, losses)[2][1].point)


def test_low_rank_probes__train_a_network(session, problem):
    algorithm = SPSA(pairs=8, step_size=0.03, noise_std=0.01, rank=1)
    played = session(algorithm, problem("mlp"), 1)
    assert len(played.states[0].matrices) == 2
    before = played.solution_loss()
    assert played.advance(150, n_steps=150).solution_loss() < 0.5 * before


def test_step__with_a_non_finite_loss_moves_nothing():
    state, first, (after, message) = fold(SPSA(), (1.0, math.inf))
    assert after is state
    assert torch.equal(message.point, first.point)


def test_joint_directions__let_every_block_estimate_its_own_part(session, problem):
    algorithm = SPSA(pairs=4, step_size=0.05, noise_std=0.01)
    for n_blocks in (1, 3):
        played = session(algorithm, problem("quadratic"), n_blocks)
        assert played.advance(300, n_steps=300).solution_loss() < 0.01


@pytest.mark.parametrize(
    ("name", "value"),
    [("pairs", 0), ("noise_std", 0.0), ("epsilon", 0.0), ("beta2", 1.0)],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        SPSA(**{name: value})
