"""A linearised network: products with the Jacobian, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blocks.algorithm import Information
from blocks.forward import FlatModel
from blocks.linearised import linearise, loss_curvature
from blocks.losses import cross_entropy, squared
from blocks.oracle import Counters


@pytest.fixture
def network(rng):
    """A small network with batch statistics and dropout, and a minibatch for it."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        module = nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8, 3),
        )
    inputs = torch.tensor(rng.standard_normal((6, 1, 4, 4)), dtype=torch.float32)
    return FlatModel(module), inputs, torch.tensor(rng.integers(0, 3, 6))


def test_linearised__brings_the_gradient_and_the_buffers_of_its_pass(network):
    model, inputs, targets = network
    params = model.initial_params()
    found = linearise(model, params, inputs, targets, cross_entropy, seed=7)
    loss, gradient, buffers = model.gradient(
        params, inputs, targets, cross_entropy, seed=7
    )
    assert found.loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.buffers, buffers)
    logits = model.forward(params, inputs, training=True, seed=7)
    assert torch.equal(found.logits, logits)


def test_products__are_transposed_to_each_other(network, rng):
    model, inputs, targets = network
    found = linearise(model, model.initial_params(), inputs, targets, cross_entropy)
    p = torch.tensor(rng.standard_normal(model.n_params), dtype=torch.float32)
    u = torch.tensor(rng.standard_normal((6, 3)), dtype=torch.float32)
    ahead, back = (found.jvp(p) * u).sum(), p @ found.vjp(u)
    torch.testing.assert_close(ahead, back, rtol=1e-4, atol=1e-4)


def test_jvp__is_the_slope_of_the_logits_at_the_same_dropout_mask(network, rng):
    model, inputs, targets = network
    params = model.initial_params()
    found = linearise(model, params, inputs, targets, cross_entropy, seed=7)
    p = torch.tensor(rng.standard_normal(model.n_params), dtype=torch.float32)
    h = 1e-3
    ends = [
        model.forward(params + s * h * p, inputs, training=True, seed=7)
        for s in (1, -1)
    ]
    # Third-order term and float32 rounding, relative to slopes of order one.
    torch.testing.assert_close(
        found.jvp(p), (ends[0] - ends[1]) / (2 * h), rtol=1e-2, atol=1e-2
    )


def test_products__outlive_other_calls_of_the_model(network, rng):
    model, inputs, targets = network
    params = model.initial_params()
    found = linearise(model, params, inputs, targets, cross_entropy)
    u = torch.tensor(rng.standard_normal((6, 3)), dtype=torch.float32)
    before = found.vjp(u), found.jvp(params)
    model.gradient(params + 1.0, inputs, targets, cross_entropy)
    assert torch.equal(found.vjp(u), before[0])
    assert torch.equal(found.jvp(params), before[1])


def test_curvature__of_the_squared_loss_is_two(rng):
    logits = torch.tensor(rng.standard_normal((4, 3)))
    bend = loss_curvature(lambda x: squared(x, torch.tensor([0, 1, 2, 0])), logits)
    u = torch.tensor(rng.standard_normal((4, 3)))
    torch.testing.assert_close(bend(u), 2 * u)


def test_curvature__of_cross_entropy_by_hand(rng):
    logits = torch.tensor(rng.standard_normal((4, 3)))
    targets = torch.tensor([0, 1, 2, 0])
    u = torch.tensor(rng.standard_normal((4, 3)))
    q = logits.softmax(1)
    expected = q * u - q * (q * u).sum(1, keepdim=True)
    bend = loss_curvature(lambda x: cross_entropy(x, targets), logits)
    torch.testing.assert_close(bend(u), expected)


def test_curvature__of_a_loss_that_is_linear_is_nothing():
    logits = torch.ones((2, 3))
    assert not loss_curvature(lambda x: x.sum(1), logits)(logits).any()


def test_oracle__counts_the_pass_and_every_product(problem):
    small = problem("mlp")
    params = small.model.initial_params()
    oracle = small.oracle(Information.JACOBIAN_ORACLE)
    found = oracle.linearised(params, None, minibatch=2)
    assert oracle.counters == Counters(n_gradient_evals=1, n_samples=4)
    assert torch.equal(found.targets, small.minibatch(2)[1])
    found.jvp(params)
    found.vjp(found.logits)
    assert oracle.counters == Counters(n_gradient_evals=3, n_samples=12)
