"""SGD and Adam training: one step by hand, many against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from blocks import ALGORITHMS
from blocks.algorithm import Gradient, Information, Node, Observation
from blocks.forward import FlatModel
from blocks.oracle import GuardedOracle
from blocks.sgd import SGD, AdamTraining


class Told:
    """An oracle that answers a gradient it was told, whatever the parameters."""

    device = torch.device("cpu")

    def __init__(self, *gradient):
        self.gradient_ = torch.tensor(gradient)

    def gradient(self, params, buffers):
        return Gradient(1.0, self.gradient_, buffers)


def steps(algorithm, params, oracle, n, n_steps=0):
    """Take ``n`` steps; returns the last state and message."""
    rng = np.random.default_rng(0)
    state, message = algorithm.init(Node(0, 1), params, oracle, rng)
    for k in range(n):
        observation = Observation(k, n_steps, algorithm.information)
        state, message = algorithm.step(state, observation, oracle, rng)
    return state, message


def test_sgd__two_steps_by_hand():
    algorithm = SGD(step_size=0.1, momentum=0.5)
    start = torch.tensor([1.0, 2.0])
    _, first = steps(algorithm, start, Told(0.5, -1.0), 1)
    # v = g, θ = (1, 2) − 0.1·(0.5, −1)
    torch.testing.assert_close(first.point, torch.tensor([0.95, 2.1]))
    _, second = steps(algorithm, start, Told(0.5, -1.0), 2)
    # v = 0.5·g + g = (0.75, −1.5)
    torch.testing.assert_close(second.point, torch.tensor([0.875, 2.25]))


def test_sgd__weight_decay_is_added_to_the_gradient():
    algorithm = SGD(step_size=0.1, momentum=0.0, weight_decay=0.5)
    _, message = steps(algorithm, torch.tensor([1.0, 2.0]), Told(0.5, -1.0), 1)
    # g + λθ = (1, 0)
    torch.testing.assert_close(message.point, torch.tensor([0.9, 2.0]))


def test_adam__first_step_has_the_length_of_the_step_size():
    _, message = steps(AdamTraining(step_size=0.1), torch.zeros(2), Told(3.0, -0.2), 1)
    torch.testing.assert_close(message.point, torch.tensor([-0.1, 0.1]))


def test_step_size__decays_by_a_cosine_to_the_final_fraction():
    algorithm = SGD(step_size=1.0, momentum=0.0, final_fraction=0.5)
    _, message = steps(algorithm, torch.zeros(1), Told(1.0), 3, n_steps=2)
    # 1.0 + 0.75 + 0.5
    torch.testing.assert_close(message.point, torch.tensor([-2.25]))


PAIRS = [
    (
        SGD(step_size=0.1, momentum=0.9, weight_decay=0.01, final_fraction=1.0),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    (
        AdamTraining(step_size=0.01, final_fraction=1.0),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ),
]


def batch_norm_net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        # No bias before the normalisation: its gradient is zero but for rounding, which
        # Adam would turn into steps of full length.
        hidden = [nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(6, 3))


@pytest.mark.parametrize(("algorithm", "optimiser"), PAIRS, ids=["sgd", "adam"])
def test_training__agrees_with_torch_batch_statistics_included(
    algorithm, optimiser, problem
):
    small, module = problem("logistic"), batch_norm_net()
    model = FlatModel(module)
    state, message = None, None
    rng = np.random.default_rng(0)
    reference = module.train()
    driver = optimiser(reference.parameters())
    for k in range(12):
        oracle = GuardedOracle(
            Information.GRADIENT_ORACLE, model, small.loss, small.minibatch, k
        )
        if state is None:
            first = model.initial_params()
            state, message = algorithm.init(Node(0, 1), first, oracle, rng)
        observation = Observation(k, 12, algorithm.information)
        state, message = algorithm.step(state, observation, oracle, rng)
        inputs, targets = small.minibatch(k)
        driver.zero_grad()
        small.loss(reference(inputs), targets).mean().backward()
        driver.step()
    expected = torch.cat([p.detach().flatten() for p in reference.parameters()])
    torch.testing.assert_close(message.point, expected, rtol=1e-4, atol=1e-6)
    statistics = torch.cat([reference[2].running_mean, reference[2].running_var])
    torch.testing.assert_close(message.buffers, statistics, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_training__reaches_the_minimum_of_a_quadratic(kind, session, problem):
    algorithm = ALGORITHMS[kind](step_size=0.05)
    played = session(algorithm, problem("quadratic")).advance(200, n_steps=200)
    assert played.solution_loss() < 1e-4


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("sgd", "step_size", 0.0),
        ("sgd", "momentum", 1.0),
        ("sgd", "weight_decay", -0.1),
        ("sgd", "batch_size", 0),
        ("sgd", "final_fraction", 1.5),
        ("adam", "step_size", float("nan")),
        ("adam", "beta1", 1.0),
        ("adam", "beta2", -0.1),
        ("adam", "batch_size", 0),
        ("adam", "final_fraction", -0.1),
    ],
)
def test_setting__out_of_range_is_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        ALGORITHMS[kind](**{name: value})
