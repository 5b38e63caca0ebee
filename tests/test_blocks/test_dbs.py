"""DBS: any shares are SGD on the pooled batch; the shares follow the speeds."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.dbs import DBS, cut, resized, slice_of
from blocks.sgd import SGD
from blocks.team import Team

STEPS = 50


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.0}, {"weight_decay": 0.05, "final_fraction": 0.2}]
)
@pytest.mark.parametrize("speeds", [(), (1.0, 2.0, 5.0), (100.0, 1.0, 1.0)])
def test_any_shares__are_sgd_on_the_pooled_batch(settings, speeds, session, double):
    algorithm = DBS(batch_size=4, adapt_every=3, speeds=speeds, **settings)
    played = session(algorithm, double(3), n_nodes=3)
    pooled = session(SGD(**settings), double(3, together=True), n_nodes=1)
    found = played.advance(STEPS, STEPS).solution()
    expected = pooled.advance(STEPS, STEPS).solution()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_sizes__follow_the_speeds_after_an_epoch(session, double):
    algorithm = DBS(batch_size=4, adapt_every=3, speeds=(1.0, 2.0, 3.0))
    played = session(algorithm, double(3), n_nodes=3)
    sizes = []
    for _ in range(7):
        sizes.append(played.states[0].sizes)
        assert len({state.sizes for state in played.states}) == 1
        played.advance(1)
    assert sizes == [(4, 4, 4)] * 3 + [(2, 4, 6)] * 4


def test_epoch__is_that_of_the_minibatches_by_default(session, double):
    played = session(DBS(batch_size=4), double(3), n_nodes=3)  # 12 samples a node
    assert played.states[0].epoch == 3


def test_replicas__stay_the_same_bit_for_bit(session, double, bits_of):
    algorithm = DBS(batch_size=4, adapt_every=3, speeds=(1.0, 2.0, 3.0))
    played = session(algorithm, double(3), n_nodes=3).advance(20)
    first, *rest = [bits_of(state.replica) for state in played.states]
    assert all(other == first for other in rest)


def measured_step(played, algorithm, node, seconds, told):
    """One step of a node whose last step took ``seconds``."""
    real = played.moments()[node]
    observation = SimpleNamespace(
        step=played.step,
        n_steps=100,
        last=False,
        inbox=real.observation.inbox,
        seconds=seconds,
        scalars=told,
    )
    oracle = played.problem.oracle(None, played.step, node)
    rng = np.random.default_rng(0)
    return algorithm.step(real.state, observation, oracle, rng)


def test_measured__times_are_told_and_used(session, double):
    algorithm = DBS(batch_size=4, adapt_every=1, measured=True)
    played = session(algorithm, double(3), n_nodes=3)
    assert [m.scalars for m in played.messages] == [(0.0,)] * 3
    told = ((1.0,), (2.0,), (2.0,))
    state, message = measured_step(played, algorithm, 1, 0.25, told)
    assert message.scalars == (0.25 / 4,)  # of a sample: 4 were timed
    assert state.sizes == (6, 3, 3)
    assert state.seconds == (0.0, 0.0, 0.0)


def test_measured__keeps_the_sizes_while_a_time_is_missing(session, double):
    algorithm = DBS(batch_size=4, adapt_every=1, measured=True)
    played = session(algorithm, double(3), n_nodes=3)
    told = ((1.0,), (0.0,), (2.0,))
    state, _ = measured_step(played, algorithm, 0, 0.25, told)
    assert state.sizes == (4, 4, 4)


def sizes_by_the_clock(played, algorithm, seconds_of, n_steps):
    """Sizes after every step, where node i takes ``seconds_of(i, samples)``."""
    took, found = [0.0] * len(played.states), []
    for _ in range(n_steps):
        told = tuple(message.scalars for message in played.messages)
        answers = [
            measured_step(played, algorithm, node, took[node], told)
            for node in range(len(took))
        ]
        played.states, played.messages = map(list, zip(*answers, strict=True))
        played.step += 1
        sizes = played.states[0].sizes
        assert {state.sizes for state in played.states} == {sizes}
        took = [seconds_of(node, b) for node, b in enumerate(sizes)]
        found.append(sizes)
    return found


@pytest.mark.parametrize("adapt_every", [1, 2, 5])
def test_measured__constant_speeds_settle_at_their_shares_and_stay(
    adapt_every, session, double
):
    algorithm = DBS(batch_size=4, adapt_every=adapt_every, measured=True)
    played = session(algorithm, double(3), n_nodes=3)
    speeds = (1.0, 2.0, 3.0)
    found = sizes_by_the_clock(played, algorithm, lambda i, b: b / speeds[i], 20)
    settled = 3 + adapt_every  # a time arrives two steps late
    assert found[settled:] == [(2, 4, 6)] * (20 - settled)
    assert set(found) == {(4, 4, 4), (2, 4, 6)}


@pytest.mark.parametrize("adapt_every", [1, 2, 5])
def test_measured__time_that_does_not_depend_on_the_size_settles_too(
    adapt_every, session, double
):
    algorithm = DBS(batch_size=4, adapt_every=adapt_every, measured=True)
    played = session(algorithm, double(3), n_nodes=3)
    delays = (0.0, 0.0, 2.0)  # beside a second a sample
    found = sizes_by_the_clock(played, algorithm, lambda i, b: b + delays[i], 40)
    (sizes,) = set(found[-10:])
    assert sizes in {(5, 5, 2), (5, 4, 3)}


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9), st.integers(0, 200))
def test_cut__is_whole_positive_and_near_the_shares(rates, more):
    total = len(rates) + more
    shares = tuple(rate / sum(rates) for rate in rates)
    parts = cut(total, shares)
    assert sum(parts) == total
    assert min(parts) >= 1
    small = sum(1 for share in shares if total * share < 1)
    for part, share in zip(parts, shares, strict=True):
        assert abs(part - total * share) < 1 + small
    ends = [slice_of(parts, node) for node in range(len(parts))]
    assert [stop for _, stop in ends[:-1]] == [start for start, _ in ends[1:]]
    assert (ends[0][0], ends[-1][1]) == (0, total)


def test_cut__by_hand():
    assert cut(10, (0.55, 0.25, 0.2)) == (6, 2, 2)
    assert cut(4, (0.97, 0.01, 0.01, 0.01)) == (1, 1, 1, 1)


def test_resized__stays_at_equal_times_or_where_one_is_missing():
    assert resized((3, 6, 3), (0.5, 0.5, 0.5)) == (3, 6, 3)
    assert resized((3, 6, 3), (1.0, 2.0, 1.0)) == (4, 4, 4)
    assert resized((3, 6, 3), (1.0, math.inf, 1.0)) == (3, 6, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speeds": (1.0, 0.0)}, "`speeds` must be positive and finite"),
        ({"adapt_every": -1}, "`adapt_every` must be at least 0"),
        ({"speeds": (1.0,), "measured": True}, "`measured` must be false where"),
    ],
)
def test_setting__out_of_range_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        DBS(**settings)


def test_speeds__must_be_one_a_node():
    with pytest.raises(ValueError, match="`speeds` must be one for each of 3 nodes"):
        DBS(speeds=(1.0, 2.0)).validate(Team.of(3, 12))
