"""OSP: all important is all-reduce; what is settled; true bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocks.algorithm import Node
from blocks.all_reduce import AllReduceSGD
from blocks.osp import OSP, inside, outside
from blocks.replica import mean

SETTINGS = [
    pytest.param({}, id="momentum"),
    pytest.param({"momentum": 0.0}, id="plain"),
    pytest.param({"weight_decay": 0.05, "final_fraction": 0.2}, id="weight-decay"),
]
STEPS = 50


@pytest.mark.parametrize("settings", SETTINGS)
def test_all_important__is_all_reduce_bit_for_bit(settings, session, double):
    staged = session(OSP(important=1.0, **settings), double(3), n_nodes=3)
    together = session(AllReduceSGD(**settings), double(3), n_nodes=3)
    staged.advance(STEPS, STEPS)
    together.advance(STEPS, STEPS)
    assert staged.bytes_moved == together.bytes_moved
    for one, other in zip(staged.messages, together.messages, strict=True):
        assert torch.equal(one.point, other.point)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("important", [0.05, 0.4])
def test_one_node__is_all_reduce(important, settings, session, double):
    staged = session(OSP(important=important, **settings), double(1), n_nodes=1)
    together = session(AllReduceSGD(**settings), double(1), n_nodes=1)
    torch.testing.assert_close(
        staged.advance(STEPS, STEPS).solution(),
        together.advance(STEPS, STEPS).solution(),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_settled__is_sgd_on_the_mean_gradient_of_the_guesses(settings, session, double):
    algorithm = OSP(important=0.3, **settings)
    played = session(algorithm, double(3), n_nodes=3)
    small, reference = double(3), AllReduceSGD(**settings)
    replica = reference.begin(Node(0, 1), small.initial_params())
    for k in range(STEPS):
        points = [message.point for message in played.messages]
        gradients = [
            small.oracle(None, k, i).gradient(point, None).gradient
            for i, point in enumerate(points)
        ]
        observation = played.moments(STEPS)[0].observation
        replica = reference.descend(replica, mean(gradients), None, observation)
        played.advance(1, STEPS)
        # The mean of the guesses is what will be settled a step later.
        torch.testing.assert_close(
            played.solution(), replica.params, rtol=0, atol=1e-10
        )
    points = [message.point for message in played.messages]
    assert not torch.equal(points[0], points[1])


def test_settled__is_the_same_on_all_nodes_bit_for_bit(session, double, bits_of):
    played = session(OSP(important=0.3), double(3), n_nodes=3).advance(20)
    first, *rest = [bits_of(state.settled) for state in played.states]
    assert all(other == first for other in rest)


def test_guess__is_apart_by_the_last_rests_only(session, double):
    algorithm = OSP(important=0.3, momentum=0.0, step_size=0.1)
    played = session(algorithm, double(3), n_nodes=3).advance(7, 0)
    gradients = [  # the last full gradients, before the step that folds them
        inside(m.payload[0], m.payload[1], m.point)
        + outside(s.rest, m.payload[1], m.point)
        for m, s in zip(played.messages, played.states, strict=True)
    ]
    rests = [
        outside(s.rest, m.payload[1], m.point)
        for m, s in zip(played.messages, played.states, strict=True)
    ]
    places = [m.payload[1] for m in played.messages]
    for g, r, p in zip(gradients, rests, places, strict=True):
        assert len(p) == 5  # ⌈0.3 · 15⌉
        assert g[p.long()].abs().min() >= r.abs().max()
    played.advance(1, 0)
    points = [m.point for m in played.messages]
    torch.testing.assert_close(points[0] - points[1], -0.1 * (rests[0] - rests[1]))


def test_bytes__are_values_indices_and_the_rest_of_the_step_before(session, double):
    played = session(OSP(important=0.3), double(3), n_nodes=3)
    pairs, m, size = 3 * 2, 5, 15
    played.advance(1)
    assert played.bytes_moved == pairs * (m * 8 + m * 4)
    played.advance(9)
    later = m * 8 + m * 4 + (size - m) * 8
    assert played.bytes_moved == pairs * (m * 8 + m * 4 + 9 * later)


def test_inside_and_outside__put_a_vector_together_again(rng):
    whole = torch.tensor(rng.standard_normal(9))
    places = torch.tensor([1, 4, 8], dtype=torch.int32)
    free = torch.tensor([0, 2, 3, 5, 6, 7])
    parts = (
        inside(whole[places.long()], places, whole),
        outside(whole[free], places, whole),
    )
    assert torch.equal(parts[0] + parts[1], whole)
    nothing = torch.empty(0, dtype=torch.int32)
    assert torch.equal(inside(whole, nothing, whole), whole)
    assert torch.equal(
        outside(whole[:0], nothing, whole), torch.zeros(9, dtype=torch.float64)
    )


@pytest.mark.parametrize("value", [0.0, 1.5, np.nan])
def test_important__out_of_range_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"`important` must be in \(0, 1\]; got"):
        OSP(important=value)
