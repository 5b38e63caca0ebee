"""SelSync: its limits, its flag, and what moves when."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blocks.algorithm import Observation
from blocks.replica import mean
from blocks.selsync import SelSync
from blocks.sgd import SGD

SETTINGS = [
    pytest.param({}, id="momentum"),
    pytest.param({"momentum": 0.0}, id="plain"),
    pytest.param({"weight_decay": 0.05, "final_fraction": 0.2}, id="weight-decay"),
]
STEPS = 50


def alone(settings, small, node):
    """Parameters of one node that trains by SGD on its own minibatches."""
    algorithm, rng = SGD(**settings), np.random.default_rng(0)
    state = algorithm.begin(_Nobody, small.initial_params())
    for k in range(STEPS):
        observation = Observation(k, STEPS, algorithm.information)
        oracle = small.oracle(None, k, node)
        state, _ = algorithm.step(state, observation, oracle, rng)
    return state.params


class _Nobody:
    buffers = None


@pytest.mark.parametrize("settings", SETTINGS)
def test_infinite_threshold_without_warm_up__is_local_training_bit_for_bit(
    settings, session, double
):
    algorithm = SelSync(threshold=math.inf, warm_up=0, **settings)
    played = session(algorithm, double(3), n_nodes=3).advance(STEPS, STEPS)
    for node, message in enumerate(played.messages):
        assert torch.equal(message.point, alone(settings, double(3), node))
    assert played.bytes_moved == STEPS * 3 * 2 * 8  # flags only


@pytest.mark.parametrize("settings", SETTINGS)
def test_threshold_zero__averages_parameters_before_every_step(
    settings, session, double
):
    algorithm = SelSync(threshold=0.0, warm_up=0, **settings)
    played = session(algorithm, double(3), n_nodes=3).advance(STEPS, STEPS)
    small, sgd = double(3), SGD(**settings)
    replicas = [sgd.begin(_Nobody, small.initial_params()) for _ in range(3)]
    for k in range(STEPS):
        gradients = [
            small.oracle(None, k, i).gradient(r.params, None).gradient
            for i, r in enumerate(replicas)
        ]
        middle = mean([r.params for r in replicas])
        observation = Observation(k, STEPS, sgd.information)
        replicas = [
            sgd.descend(type(r)(middle, None, r.optimiser), g, None, observation)
            for r, g in zip(replicas, gradients, strict=True)
        ]
    for message, replica in zip(played.messages, replicas, strict=True):
        assert torch.equal(message.point, replica.params)


def test_warm_up__synchronises_the_first_steps_only(session, double):
    algorithm = SelSync(threshold=math.inf, warm_up=5)
    played = session(algorithm, double(3), n_nodes=3)
    moved = []
    for _ in range(8):
        before = played.bytes_moved
        played.advance(1)
        moved.append(played.bytes_moved - before > 3 * 2 * 8)
    assert moved == [True] * 5 + [False] * 3


def test_one_flag__is_enough_for_all_to_listen(session, double):
    team = session(SelSync(), double(3), n_nodes=3).team
    algorithm = SelSync()
    assert algorithm.senders(1, team, 40, ((0.0,), (0.0,), (1.0,))) == (0, 2)
    assert algorithm.senders(1, team, 40, ((0.0,), (0.0,), (0.0,))) == ()


def test_change__by_hand():
    algorithm = SelSync(window=2, smoothing=0.5)
    # n = (4 + ½·2)/(3/2) = 10/3, before (2 + ½·1)/(3/2) = 5/3
    assert algorithm.change((1.0, 2.0, 4.0)) == pytest.approx(1.0)
    plain = SelSync(window=2, smoothing=0.0)
    # n = 3, before 1.5
    assert plain.change((1.0, 2.0, 4.0)) == pytest.approx(1.0)
    assert plain.change((5.0,)) == 0.0
    assert plain.change((0.0, 1.0)) > 1e300


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_flag__is_up_for_a_change_that_is_not_finite(bad, double, session):
    class Broken:
        def gradient(self, params, buffers, minibatch=None, part=None):
            answer = double(1).oracle(None, 3).gradient(params, buffers)
            return type(answer)(answer.loss, answer.gradient * bad, None)

    algorithm = SelSync(threshold=math.inf, warm_up=0)
    played = session(algorithm, double(2), n_nodes=2).advance(3)
    moment, rng = played.moments()[0], np.random.default_rng(0)
    _, message = algorithm.step(moment.state, moment.observation, Broken(), rng)
    assert message.scalars == (1.0,)


def test_window__keeps_as_many_norms_as_are_compared(session, double):
    played = session(SelSync(window=4), double(2), n_nodes=2).advance(12)
    assert [len(state.norms) for state in played.states] == [5, 5]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", -0.1),
        ("threshold", math.nan),
        ("window", 0),
        ("smoothing", 1.0),
        ("warm_up", -1),
    ],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        SelSync(**{name: value})
