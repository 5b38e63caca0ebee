"""Claims of `blocks.probes`."""

import numpy as np
import pytest
import torch

from blocks.algorithm import step_rng
from blocks.probes import Dense, directions, probe_points

KINDS = ["sign", "gaussian"]


@pytest.mark.parametrize("kind", KINDS)
def test_directions__same_numbers_give_the_same_bits(kind):
    first = directions(3, 2, 7, 5, 101, kind)
    torch.manual_seed(0)
    second = directions(3, 2, 7, 5, 101, kind)
    assert first.shape == (5, 101)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [(4, 2, 7), (3, 1, 7), (3, 2, 8)])
def test_directions__seed_node_and_step_separate_the_streams(kind, other):
    first = directions(3, 2, 7, 4, 4096, kind)
    second = directions(*other, 4, 4096, kind)
    assert abs(float((first * second).mean())) < 0.04  # 5 standard errors of 16,384


def test_directions__are_not_the_stream_of_the_step_itself():
    own = step_rng(3, 2, 7).standard_normal((4, 64), dtype=np.float32)
    assert not np.array_equal(directions(3, 2, 7, 4, 64, "gaussian").numpy(), own)


@pytest.mark.parametrize("kind", KINDS)
def test_directions__have_identity_covariance(kind):
    dirs = directions(0, 0, 0, 20_000, 6, kind)
    covariance = dirs.T @ dirs / dirs.shape[0]
    # Five standard errors: the variance of a product is at most 2, n = 20,000.
    assert torch.allclose(covariance, torch.eye(6), atol=5 * (2 / 20_000) ** 0.5)
    assert float(dirs.mean(0).abs().max()) < 5 / 20_000**0.5


def test_directions__signs_are_plus_or_minus_one():
    assert set(directions(1, 0, 0, 8, 1001, "sign").unique().tolist()) == {-1.0, 1.0}


def test_directions__signs_are_the_bits_of_each_row_from_its_first_byte():
    raw = np.frombuffer(step_rng(3, 2, 7, purpose=1).bytes(3 * 2), dtype=np.uint8)
    bits = np.unpackbits(raw.reshape(3, 2), axis=1)[:, :13]
    expected = np.where(bits == 1, 1.0, -1.0).astype(np.float32)
    assert np.array_equal(directions(3, 2, 7, 3, 13).numpy(), expected)


def test_dense__combines_and_gives_its_rows(rng):
    rows = torch.tensor(rng.standard_normal((5, 9)))
    weights = torch.tensor(rng.standard_normal(5))
    dirs = Dense(rows)
    assert torch.equal(dirs.dense(1, 3), rows[1:3])
    torch.testing.assert_close(dirs.combine(weights), (weights[:, None] * rows).sum(0))


def test_probe_points__order_is_plus_minus_by_pair():
    point = torch.tensor([1.0, 2.0])
    dirs = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    expected = torch.tensor([[1.5, 1.5], [0.5, 2.5], [1.5, 2.5], [0.5, 1.5]])
    assert torch.equal(probe_points(point, 0.5, dirs), expected)
    assert torch.equal(point, torch.tensor([1.0, 2.0]))


def test_probe_points__antithetic_difference_estimates_a_linear_slope():
    slope = torch.linspace(-1, 1, 32)
    dirs = directions(0, 0, 0, 40_000, 32)
    losses = probe_points(torch.zeros(32), 0.1, dirs) @ slope
    estimate = ((losses[0::2] - losses[1::2]) / 0.2) @ dirs / dirs.shape[0]
    # standard error ‖slope‖/√40,000 = 0.017; five of them
    assert torch.allclose(estimate, slope, atol=0.085)


@pytest.mark.parametrize(("n_pairs", "size"), [(0, 4), (4, 0), (-1, 4)])
def test_directions__refuses_empty_shapes(n_pairs, size):
    with pytest.raises(ValueError, match="at least 1"):
        directions(0, 0, 0, n_pairs, size)


def test_directions__refuses_an_unknown_kind_and_names_the_allowed():
    with pytest.raises(ValueError, match='"sign", "gaussian"'):
        directions(0, 0, 0, 1, 1, "uniform")


@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_probe_points__refuses_mismatched_shapes(shape):
    with pytest.raises(ValueError, match="shape"):
        probe_points(torch.zeros(3), 0.1, torch.zeros(shape))
