"""Layer-wise asynchronous SGD: parts in backward order, others' parts in between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from blocks.algorithm import SERVER, Node, Observation
from blocks.async_sgd import AsyncSGD
from blocks.layerwise_async_sgd import LayerwiseAsyncSGD
from blocks.sgd import SGD
from blocks.team import Team

LAYERS = ((0, 25), (25, 43))  # of the small perceptron: 4 × 5 + 5, 5 × 3 + 3
STEADY = {"step_size": 0.1, "momentum": 0.5, "final_fraction": 1.0}


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


class Table:
    """Nodes at one server; whoever is called takes a step with the model as it is."""

    def __init__(self, algorithm, small, n_nodes, layers):
        self.algorithm, self.small = algorithm, small
        self.rng = np.random.default_rng(0)
        team = replace(Team.of(n_nodes, 12), layers=layers)
        start = small.model.initial_params()
        self.server = algorithm.open(start, None, team)
        self.states = [
            algorithm.init(Node(i, n_nodes, team=team), start, None, self.rng)[0]
            for i in range(n_nodes)
        ]
        self.steps, self.counts = [0] * n_nodes, []

    def call(self, node, n_steps=0):
        """Let a node take a step, fold its message, and return the message."""
        step, allowed = self.steps[node], self.algorithm.information
        inbox = {SERVER: self.algorithm.view(self.server).payload}
        seen = Observation(step, n_steps, allowed, None, inbox)
        oracle = self.small.oracle(allowed, step, node)
        self.states[node], message = self.algorithm.step(
            self.states[node], seen, oracle, self.rng
        )
        self.server = self.algorithm.serve(self.server, node, message, n_steps)
        self.steps[node] += 1
        self.counts.append(oracle.counters.n_gradient_evals)
        return message


# -- limits -------------------------------------------------------------------------


@pytest.mark.parametrize("n_nodes", [1, 3])
def test_one_layer__is_async_sgd_bit_for_bit(n_nodes, session, normed):
    shared = {"step_size": 0.1, "momentum": 0.5, "weight_decay": 0.05}
    parts = session(LayerwiseAsyncSGD(**shared), normed, n_nodes=n_nodes)
    whole = session(AsyncSGD(**shared), normed, n_nodes=n_nodes)
    for _ in range(10):
        a = parts.advance(1, n_steps=10).server
        b = whole.advance(1, n_steps=10).server
        assert torch.equal(a.params, b.params)
        assert torch.equal(a.buffers, b.buffers)
        assert torch.equal(a.optimiser.velocity, b.optimiser.velocity)


def test_one_node__is_sgd_bit_for_bit_each_time_a_gradient_is_handed_over(
    session, normed
):
    settings = {**STEADY, "weight_decay": 0.05}
    alone = session(SGD(**settings), normed)
    # Linear and normalisation, then linear.
    layers = ((0, 30), (30, 42), (42, 63))
    table = Table(LayerwiseAsyncSGD(**settings), normed, 1, layers)
    for _ in range(10):
        alone.advance(1)
        for _ in layers:
            table.call(0)
        assert torch.equal(table.server.params, alone.messages[0].point)
        assert torch.equal(table.server.buffers, alone.messages[0].buffers)


def test_order_of_arrival__is_a_serial_replay_bit_for_bit(problem, rng):
    small, n_nodes = problem("mlp"), 3
    calls = [int(node) for node in rng.integers(n_nodes, size=40)]
    table = Table(LayerwiseAsyncSGD(**STEADY), small, n_nodes, LAYERS)

    x, v = small.model.initial_params(), torch.zeros(43)
    held, drawn = {}, [0] * n_nodes  # node → its gradient with the first layer to come
    for node in calls:
        table.call(node)
        if node in held:
            gradient, here = held.pop(node), slice(0, 25)
        else:
            inputs, targets = small.minibatch(drawn[node], node)
            _, gradient, _ = small.model.gradient(x, inputs, targets, small.loss)
            held[node], here = gradient, slice(25, 43)
            drawn[node] += 1
        x, v = x.clone(), v.clone()
        v[here] = 0.5 * v[here] + gradient[here]
        x[here] -= 0.1 * v[here]
        assert torch.equal(table.server.params, x)


# -- parts --------------------------------------------------------------------------


def test_parts__come_last_layer_first_and_only_the_first_costs_a_gradient(problem):
    table = Table(LayerwiseAsyncSGD(), problem("mlp"), 1, LAYERS)
    messages = [table.call(0) for _ in range(6)]
    sizes = [(int(m.payload[1]), len(m.payload[0])) for m in messages]
    assert sizes == [(25, 18), (0, 25)] * 3
    assert table.counts == [1, 0] * 3
    assert table.server.n_folded == 6


def test_part__changes_its_own_layer_only(problem):
    table = Table(LayerwiseAsyncSGD(), problem("mlp"), 1, LAYERS)
    before = table.server.params
    table.call(0)
    middle = table.server.params
    table.call(0)
    after = table.server.params
    assert torch.equal(before[:25], middle[:25])
    assert not torch.equal(before[25:], middle[25:])
    assert torch.equal(middle[25:], after[25:])
    assert not torch.equal(middle[:25], after[:25])


def test_minibatches__are_all_used(problem):
    """Two layers: steps 0, 1 | 2, 3 hand over the gradients of minibatches 0 and 1."""
    small, drawn = problem("mlp"), []

    class Drawn(type(small)):
        def minibatch(self, step, node=0):
            drawn.append(step)
            return super().minibatch(step, node)

    fields = (small.module, small.loss, small.inputs, small.targets)
    table = Table(LayerwiseAsyncSGD(), Drawn(*fields), 1, LAYERS)
    for _ in range(6):
        table.call(0)
    assert drawn == [0, 1, 2]


def test_statistics__travel_once_a_gradient_with_the_last_part(normed):
    table = Table(LayerwiseAsyncSGD(), normed, 1, ((0, 42), (42, 63)))
    assert [len(table.call(0).payload) for _ in range(4)] == [2, 3, 2, 3]


def test_part__carries_no_memory_but_its_own(problem):
    table = Table(LayerwiseAsyncSGD(), problem("mlp"), 1, LAYERS)
    part = table.call(0).payload[0]
    assert part.untyped_storage().nbytes() == 4 * 18
    assert table.states[0].gradient.untyped_storage().nbytes() == 4 * 25
    table.call(0)
    assert table.states[0].gradient is None


@pytest.mark.parametrize(
    "layers",
    [((0, 25),), ((25, 43), (0, 25)), ((0, 25), (26, 43)), ((0, 25), (25, 44))],
)
def test_layers__that_do_not_cover_the_parameters_are_refused(layers, problem):
    with pytest.raises(ValueError, match=r"`team.layers` must cover all 43 .*; got"):
        Table(LayerwiseAsyncSGD(), problem("mlp"), 1, layers)


def test_learns__with_three_nodes_and_two_layers(problem):
    small = problem("mlp")
    table = Table(LayerwiseAsyncSGD(), small, 3, LAYERS)
    before = small.mean_loss(table.server.params)
    for i in range(600):
        table.call(i % 3, 200)
    assert small.mean_loss(table.server.params) < 0.75 * before
