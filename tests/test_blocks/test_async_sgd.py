"""Asynchronous SGD: no delay is SGD, stated delays are a serial replay, assignments."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from blocks.algorithm import SERVER, Gradient, Message, Node, Observation
from blocks.async_sgd import AsyncSGD
from blocks.sgd import SGD
from blocks.team import Team

TEAM = Team.of(4, 12, seed=6)


@pytest.fixture
def normed(problem):
    """Return a problem whose model has statistics: batch normalisation."""
    generator = torch.Generator().manual_seed(2)
    hidden = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()]
    module = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return replace(problem("mlp"), module=module)


def play(algorithm, small, arrivals, n_nodes, n_steps):
    """Servers after 0, 1, … messages.

    Message i comes from node ``arrivals[i][0]``, which was given the model as it was
    ``arrivals[i][1]`` messages ago.
    """
    start, rng = small.model.initial_params(), np.random.default_rng(0)
    team = Team.of(n_nodes, 12)
    servers = [algorithm.open(start, None, team)]
    states = [
        algorithm.init(Node(i, n_nodes, team=team), start, None, rng)[0]
        for i in range(n_nodes)
    ]
    for node, delay in arrivals:
        step = states[node].n_done
        given = algorithm.view(servers[-1 - delay]).payload
        seen = Observation(step, n_steps, algorithm.information, None, {SERVER: given})
        oracle = small.oracle(algorithm.information, step, node)
        states[node], message = algorithm.step(states[node], seen, oracle, rng)
        servers.append(algorithm.serve(servers[-1], node, message, n_steps))
    return servers


# -- limits -------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_node_without_delay__is_sgd_bit_for_bit(momentum, session, normed):
    shared = {"step_size": 0.1, "momentum": momentum, "weight_decay": 0.05}
    alone = session(SGD(**shared), normed)
    served = session(AsyncSGD(**shared), normed, n_nodes=1)
    for _ in range(20):
        alone.advance(1, n_steps=20)
        served.advance(1, n_steps=20)
        view = served.algorithm.view(served.server)
        assert torch.equal(view.point, alone.messages[0].point)
        assert torch.equal(view.buffers, alone.messages[0].buffers)


def test_stated_delays__are_a_serial_replay_bit_for_bit(problem, rng):
    small, n_nodes, n_steps, n = problem("mlp"), 3, 12, 36
    arrivals = [(int(rng.integers(n_nodes)), int(rng.integers(5))) for _ in range(n)]
    arrivals = [(node, min(delay, i)) for i, (node, delay) in enumerate(arrivals)]
    algorithm = AsyncSGD(step_size=0.2, momentum=0.3, final_fraction=0.25)
    servers = play(algorithm, small, arrivals, n_nodes, n_steps)

    x, v, seen = [small.model.initial_params()], 0.0, [0] * n_nodes
    for i, (node, delay) in enumerate(arrivals):
        inputs, targets = small.minibatch(seen[node], node)
        at = x[i - delay]
        _, gradient, _ = small.model.gradient(at, inputs, targets, small.loss)
        v = 0.3 * v + gradient
        alpha = 0.2 * (0.25 + 0.75 * 0.5 * (1.0 + math.cos(math.pi * (i / n))))
        x.append(x[i] - alpha * v)
        seen[node] += 1
    assert max(delay for _, delay in arrivals) == 4
    assert all(torch.equal(s.params, p) for s, p in zip(servers, x, strict=True))
    assert servers[-1].n_folded == n


def test_delay__changes_the_answer(problem):
    """The replay above would hold, if views were ignored, for the wrong reason."""
    now = play(AsyncSGD(), problem("mlp"), [(0, 0)] * 4, 1, 4)
    late = play(AsyncSGD(), problem("mlp"), [(0, 0), (0, 1), (0, 1), (0, 1)], 1, 4)
    assert torch.equal(now[1].params, late[1].params)
    assert not torch.equal(now[2].params, late[2].params)


# -- the server ---------------------------------------------------------------------


def test_server__keeps_float64_and_moves_only_forwards():
    algorithm = AsyncSGD(step_size=0.1, momentum=0.5)
    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    gradient = torch.tensor([0.5, -1.0], dtype=torch.float64)
    first = algorithm.open(start, None, TEAM)
    message = Message(point=start, payload=(gradient,))
    second = algorithm.serve(first, 0, message, 0)
    third = algorithm.serve(second, 1, message, 0)
    expected = torch.tensor([0.875, 2.25], dtype=torch.float64)
    torch.testing.assert_close(third.params, expected, rtol=0, atol=1e-15)
    assert first.params.tolist() == start.tolist() == [1.0, 2.0]
    assert gradient.tolist() == [0.5, -1.0]
    assert (first.n_folded, second.n_folded, third.n_folded) == (0, 1, 2)


def test_server__does_not_share_memory_with_what_it_is_opened_with():
    start, buffers = torch.zeros(2), torch.zeros(3)
    server = AsyncSGD().open(start, buffers, TEAM)
    start += 1
    buffers += 1
    assert not server.params.any()
    assert not server.buffers.any()


def test_server__has_the_buffers_of_the_newest_message():
    algorithm, start = AsyncSGD(), torch.zeros(2)
    server = algorithm.open(start, torch.zeros(3), TEAM)
    for value in (1.0, 2.0):
        payload = (torch.ones(2), torch.full((3,), value))
        server = algorithm.serve(server, 0, Message(start, payload=payload), 0)
    view = algorithm.view(server)
    assert view.buffers.tolist() == view.payload[1].tolist() == [2.0, 2.0, 2.0]


def test_node__computes_nothing_ahead():
    """n jobs are n gradients, on minibatches 0, 1, …, n − 1, the last one included."""

    class Asked:
        minibatches: tuple[int, ...] = ()

        def gradient(self, params, buffers, minibatch=None):
            self.minibatches += (minibatch,)
            return Gradient(0.0, params, buffers)

    algorithm, oracle, rng = AsyncSGD(), Asked(), np.random.default_rng(0)
    params = torch.ones(2)
    state, _ = algorithm.init(Node(0, 1), params, oracle, rng)
    for k in range(3):
        inbox = {SERVER: (params,)}
        seen = Observation(k, 3, algorithm.information, None, inbox)
        state, message = algorithm.step(state, seen, oracle, rng)
        assert len(message.payload) == 1
    assert oracle.minibatches == (0, 1, 2)


# -- assignment ---------------------------------------------------------------------


def jobs(algorithm, n, team=TEAM):
    return [algorithm.next_job(i % 2, i, team) for i in range(n)]


def test_finished__is_given_the_next_job():
    assert jobs(AsyncSGD(), 6) == [0, 1, 0, 1, 0, 1]


def test_shuffled__gives_everybody_one_job_a_cycle():
    given = jobs(AsyncSGD(assignment="shuffled"), 40)
    cycles = [tuple(given[i : i + 4]) for i in range(0, 40, 4)]
    assert all(sorted(cycle) == [0, 1, 2, 3] for cycle in cycles)
    assert len(set(cycles)) > 1


def test_random__gives_everybody_some_jobs():
    given = jobs(AsyncSGD(assignment="random"), 400)
    # 100 ± 8.7 each: five standard deviations.
    assert all(56 < given.count(node) < 144 for node in range(4))
    cycles = [sorted(given[i : i + 4]) for i in range(0, 400, 4)]
    assert any(cycle != [0, 1, 2, 3] for cycle in cycles)


@pytest.mark.parametrize("assignment", ["random", "shuffled"])
def test_assignment__is_the_seeds_and_nothing_elses(assignment):
    algorithm = AsyncSGD(assignment=assignment)
    assert jobs(algorithm, 40) == jobs(algorithm, 40)
    assert jobs(algorithm, 40) != jobs(algorithm, 40, Team.of(4, 12, seed=7))
    assert algorithm.next_job(0, 9, TEAM) == algorithm.next_job(3, 9, TEAM)


@pytest.mark.parametrize(
    ("name", "value"),
    [("assignment", "fastest"), ("momentum", 1.0), ("step_size", 0.0)],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        AsyncSGD(**{name: value})
