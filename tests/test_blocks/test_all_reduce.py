"""All-reduce SGD: the same as SGD on the pooled batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from blocks.algorithm import Node, Observation
from blocks.all_reduce import AllReduceSGD
from blocks.rehearsal import Problem
from blocks.sgd import SGD
from blocks.team import Team

SETTINGS = [
    pytest.param({}, id="momentum"),
    pytest.param({"momentum": 0.0}, id="plain"),
    pytest.param({"weight_decay": 0.05, "final_fraction": 0.2}, id="weight-decay"),
]
STEPS = 50


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_equal_shards__are_sgd_on_the_pooled_batch(n, settings, session, double):
    together = session(AllReduceSGD(**settings), double(n), n_nodes=n)
    pooled = session(SGD(**settings), double(n, together=True), n_nodes=1)
    found = together.advance(STEPS, STEPS).solution()
    expected = pooled.advance(STEPS, STEPS).solution()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_node__is_sgd_bit_for_bit(settings, session, double):
    alone = session(AllReduceSGD(**settings), double(1), n_nodes=1)
    sgd = session(SGD(**settings), double(1), n_nodes=1)
    found = alone.advance(STEPS, STEPS).solution()
    assert torch.equal(found, sgd.advance(STEPS, STEPS).solution())


def test_replicas__stay_the_same_bit_for_bit(session, double, bits_of):
    played = session(AllReduceSGD(), double(3), n_nodes=3).advance(20)
    first, *rest = [bits_of(state.replica) for state in played.states]
    assert all(other == first for other in rest)


def test_unequal_shards__are_weighted_by_their_samples(double):
    team = Team(n_samples=(30, 10), machines=(0, 0))
    algorithm, small = AllReduceSGD(momentum=0.0, step_size=0.1), double(2)
    start, rng = small.initial_params(), np.random.default_rng(0)
    made = [
        algorithm.init(Node(i, 2, team=team), start, small.oracle(None, 0, i), rng)
        for i in range(2)
    ]
    inbox = {i: message.payload for i, (_, message) in enumerate(made)}
    observation = Observation(0, 10, algorithm.information, None, inbox)
    _, message = algorithm.step(made[0][0], observation, small.oracle(None, 0, 0), rng)
    gradient = 0.75 * inbox[0][0] + 0.25 * inbox[1][0]
    torch.testing.assert_close(message.point, start - 0.1 * gradient)


def test_n_steps__cost_n_gradients_a_node(session, problem):
    played = session(AllReduceSGD(), problem("mlp"), n_nodes=3)
    played.advance(5, n_steps=6)
    moment = played.moments(6)[0]
    oracle = played.problem.oracle(AllReduceSGD.information, 5)
    rng = np.random.default_rng(0)
    _, message = played.algorithm.step(moment.state, moment.observation, oracle, rng)
    assert oracle.counters.n_gradient_evals == 0
    assert message.payload == ()


def test_step__that_was_not_planned_is_refused(session, double):
    played = session(AllReduceSGD(), double(1), n_nodes=1).advance(3, n_steps=3)
    with pytest.raises(ValueError, match=r"`observation.step` must be a planned step"):
        played.advance(1, n_steps=3)


def test_bytes__are_a_gradient_from_every_other_node(session, double):
    played = session(AllReduceSGD(), double(3), n_nodes=3).advance(10)
    assert played.bytes_moved == 10 * 3 * 2 * 15 * 8


def test_batch_statistics__are_averaged(session, problem):
    small = problem("logistic")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    normed: Problem = replace(small, module=net)
    played = session(AllReduceSGD(), normed, n_nodes=2)
    told = [message.payload[1] for message in played.messages]
    assert not torch.equal(*told)
    played.advance(1)
    for message in played.messages:
        torch.testing.assert_close(message.buffers, (told[0] + told[1]) / 2)
