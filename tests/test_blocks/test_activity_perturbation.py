"""Activity perturbation as an algorithm: one step by hand, and what moves nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from blocks.activity import ActivityNoise
from blocks.activity_perturbation import ActivityPerturbation
from blocks.algorithm import LossRecord, Node, Observation

START = torch.tensor([0.5, -0.5, 1.0])
ESTIMATE = torch.tensor([2.0, -0.25, 0.0])


class Told:
    """An oracle that answers what it was told, and counts."""

    def __init__(self, estimate=ESTIMATE):
        self.estimate, self.n_asked = estimate, 0

    def activity_estimate(self):
        self.n_asked += 1
        return self.estimate


def begin(algorithm):
    return algorithm.init(Node(0, 1), START, Told(), np.random.default_rng(0))


def fold(algorithm, state, oracle, step=0, losses=(1.0, 2.0)):
    record = LossRecord("run", step, losses, (step,))
    observation = Observation(step, 10, algorithm.information, record)
    return algorithm.step(state, observation, oracle, np.random.default_rng(0))


def test_step__with_adam_by_hand():
    algorithm = ActivityPerturbation(step_size=0.1)
    state, first = begin(algorithm)
    assert torch.equal(first.point, START)
    assert first.probe_std == 0.0
    _, message = fold(algorithm, state, Told())
    # Adam's first direction is the sign; the cosine starts at the full step size.
    expected = START - 0.1 * torch.tensor([1.0, -1.0, 0.0])
    torch.testing.assert_close(message.point, expected, rtol=0, atol=1e-6)


def test_step__with_momentum_and_the_cosine_by_hand():
    algorithm = ActivityPerturbation(
        optimiser="momentum", step_size=0.1, momentum=0.5, final_fraction=0.2
    )
    state, _ = begin(algorithm)
    state, _ = fold(algorithm, state, Told(), step=0)
    _, message = fold(algorithm, state, Told(), step=5)
    # θ − 0.1·g − 0.1·(0.2 + 0.8/2)·1.5 g
    expected = START - (0.1 + 0.06 * 1.5) * ESTIMATE
    torch.testing.assert_close(message.point, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_step__with_a_non_finite_loss_moves_nothing_and_asks_nothing(bad):
    algorithm, oracle = ActivityPerturbation(), Told()
    state, first = begin(algorithm)
    after, message = fold(algorithm, state, oracle, losses=(1.0, bad))
    assert after is state
    assert torch.equal(message.point, first.point)
    assert oracle.n_asked == 0


def test_settings__say_what_a_pass_adds():
    algorithm = ActivityPerturbation(noise_std=0.02, draws=3, noise="gaussian")
    assert algorithm.noise_settings == ActivityNoise(0.02, 3, "gaussian")
    assert algorithm.n_probes == 6


def test_estimate__of_a_session_is_every_blocks_own_part(session, problem):
    small, algorithm = problem("mlp"), ActivityPerturbation(draws=2)
    played = session(algorithm, small)
    assert [block.size for block in played.blocks] == [25, 18]
    noise, params = algorithm.noise_settings, small.model.initial_params()
    losses, whole = small.credit(noise, params, 0)
    parts = [played.oracle(m).activity_estimate() for m in played.moments()]
    assert torch.equal(torch.cat(parts), whole)
    assert played.record().losses == tuple(losses.tolist())


def test_draws__more_of_them_come_nearer_to_the_gradient(problem):
    small = problem("mlp")
    params = small.model.initial_params()
    true = small.model.gradient(params, small.inputs, small.targets, small.loss)[1]
    error = {}
    for draws in (1, 16):
        noise = ActivityNoise(0.01, draws, "sign")
        found = [small.credit(noise, params, k)[1] - true for k in range(40)]
        error[draws] = float(torch.stack(found).square().mean())
    # The variance falls as 1/16; 40 draws know their mean square to about a fifth.
    assert error[16] < 2 * error[1] / 16


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_training__goes_most_of_the_way_of_the_true_gradient(name, session, problem):
    small, n_steps = problem(name), 100
    algorithm = ActivityPerturbation(step_size=0.05, draws=8)
    rng, params = np.random.default_rng(0), small.model.initial_params()
    state, _ = algorithm.init(Node(0, 1), params, Told(), rng)
    for k in range(n_steps):
        _, true, _ = small.model.gradient(
            state.params, small.inputs, small.targets, small.loss
        )
        seen = Observation(
            k, n_steps, algorithm.information, LossRecord("run", k, (1.0,), (k,))
        )
        state, _ = algorithm.step(state, seen, Told(true), rng)
    played = session(algorithm, small).advance(n_steps, n_steps=n_steps)
    before, best = small.mean_loss(params), small.mean_loss(state.params)
    assert before - played.solution_loss() > 0.7 * (before - best)


def test_training__is_the_same_in_one_block_or_several(session, problem):
    algorithm, small = ActivityPerturbation(), problem("mlp")
    several = session(algorithm, small).advance(5)
    state, _ = algorithm.init(
        Node(0, 1), small.model.initial_params(), Told(), np.random.default_rng(0)
    )
    for k in range(5):
        _, estimate = small.credit(algorithm.noise_settings, state.params, k)
        record = LossRecord("run", k, (1.0, 1.0), (k,))
        seen = Observation(k, 100, algorithm.information, record)
        rng = np.random.default_rng(0)
        state, _ = algorithm.step(state, seen, Told(estimate), rng)
    assert torch.equal(state.params, several.solution())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_std", 0.0),
        ("noise_std", math.inf),
        ("draws", 0),
        ("noise", "uniform"),
        ("optimiser", "sgd"),
        ("step_size", -1.0),
        ("final_fraction", 1.5),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("momentum", 1.0),
    ],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        replace(ActivityPerturbation(), **{name: value})
