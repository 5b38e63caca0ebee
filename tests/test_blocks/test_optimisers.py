"""Momentum and Adam as pure functions, against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from blocks.optimisers import Adam, Momentum, decayed


def gradients(rng, dtype, n=40):
    return [torch.tensor(rng.standard_normal(9), dtype=dtype) for _ in range(n)]


def torch_follow(optimiser, directions, **settings):
    params = torch.zeros_like(directions[0], requires_grad=True)
    driver = optimiser([params], **settings)
    for gradient in directions:
        params.grad = gradient.clone()
        driver.step()
    return params.detach()


# torch fuses its products in other orders: equal to rounding, not bit for bit.
PRECISION = [(torch.float32, 1e-6), (torch.float64, 1e-14)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum__agrees_with_torch(rng, dtype, tolerance, momentum):
    given = gradients(rng, dtype)
    state, params = Momentum.zeros(given[0]), torch.zeros_like(given[0])
    for gradient in given:
        state, direction = state.step(gradient, momentum)
        params = params - 0.01 * direction
    reference = torch_follow(torch.optim.SGD, given, lr=0.01, momentum=momentum)
    torch.testing.assert_close(params, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_adam__agrees_with_torch(rng, dtype, tolerance, betas):
    given = gradients(rng, dtype)
    state, params = Adam.zeros(given[0]), torch.zeros_like(given[0])
    for gradient in given:
        state, direction = state.step(gradient, *betas)
        params = params - 0.01 * direction
    reference = torch_follow(torch.optim.Adam, given, lr=0.01, betas=betas)
    torch.testing.assert_close(params, reference, rtol=tolerance, atol=tolerance)


def test_adam__first_direction_is_the_sign_of_the_gradient():
    gradient = torch.tensor([3.0, -0.02, 0.0])
    state, direction = Adam.zeros(gradient).step(gradient, 0.9, 0.999)
    torch.testing.assert_close(
        direction, torch.tensor([1.0, -1.0, 0.0]), rtol=1e-6, atol=0
    )
    assert state.n_steps == 1


def test_state__is_not_changed_by_a_step():
    gradient = torch.ones(3)
    for state in (Momentum.zeros(gradient), Adam.zeros(gradient)):
        state.step(gradient, *([0.9] if isinstance(state, Momentum) else [0.9, 0.99]))
        values = [state.velocity] if isinstance(state, Momentum) else [state.mean]
        assert not values[0].any()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2.0),
        (50, 1.1),
        (100, 0.2),
        (1000, 0.2),
        (25, 1.7363961030678928),
    ],
)
def test_decayed__is_a_cosine_from_the_first_to_the_last(step, expected):
    assert math.isclose(decayed(2.0, 0.1, step, 100), expected, rel_tol=1e-12)


def test_decayed__of_an_open_ended_run_stays():
    assert decayed(2.0, 0.1, 10_000, 0) == 2.0
