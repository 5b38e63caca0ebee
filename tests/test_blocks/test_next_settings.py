"""NEXT: what it sends and mixes, whom it hears, and the settings it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocks.algorithm import Gradient, InformationError, Node, Observation
from blocks.next import NEXT
from blocks.rehearsal import Session
from blocks.team import Team


def test_payload__is_float32_parameters_and_a_float64_tracker(problem):
    played = Session.start(NEXT(), problem("mlp")).advance(2)
    z, y = played.messages[0].payload
    assert (z.dtype, y.dtype) == (torch.float32, torch.float64)
    assert played.messages[0].payload_bytes == 12 * played.problem.model.n_params


def test_full_linearisation__asks_for_no_jacobian(problem):
    class Frugal(NEXT):
        information = NEXT.information & ~NEXT.information.JACOBIAN_ORACLE

    Session.start(Frugal(), problem("mlp")).advance(2)
    with pytest.raises(InformationError, match="JACOBIAN"):
        Session.start(Frugal(linearisation="partial"), problem("mlp"))


class Still:
    """An oracle without a slope whose buffers are what it was told."""

    def __init__(self, *buffers):
        self.buffers = torch.tensor(buffers)

    def gradient(self, params, buffers, minibatch):
        return Gradient(0.0, torch.zeros_like(params), self.buffers + minibatch)


def test_buffers__are_mixed_with_the_weights_of_the_parameters():
    algorithm = NEXT(mixing_weights=((0.75, 0.25), (0.25, 0.75)))
    team, rng = Team.of(2, 6), np.random.default_rng(0)
    first = torch.zeros(2)
    made = [
        algorithm.init(Node(i, 2, buffers=first, team=team), torch.ones(3), o, rng)
        for i, o in enumerate((Still(0.0, 8.0), Still(4.0, 0.0)))
    ]
    assert made[0][1].buffers is first
    inbox = {i: m.payload for i, (_, m) in enumerate(made)}
    seen = Observation(0, 1, algorithm.information, None, inbox)
    _, message = algorithm.step(made[0][0], seen, Still(0.0, 0.0), rng)
    assert message.buffers.tolist() == [1.0, 6.0]
    seen = Observation(0, 0, algorithm.information, None, inbox)
    _, message = algorithm.step(made[0][0], seen, Still(0.0, 0.0), rng)
    assert message.buffers.tolist() == message.payload[2].tolist() == [1.0, 1.0]


def test_senders__are_the_neighbours_in_the_graph_of_the_step():
    team = Team.of(5, 10)
    assert NEXT().senders(0, team, 3, ()) == (1, 4)
    assert NEXT(graph="complete").senders(2, team, 0, ()) == (0, 1, 3, 4)
    pairs = NEXT(graph="matchings")
    for step in range(6):
        for node in range(5):
            heard = pairs.senders(node, team, step, ())
            assert all(pairs.senders(j, team, step, ()) == (node,) for j in heard)


# -- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"linearisation": "half"}, "`linearisation` must be one of.*'half'"),
        ({"graph": "star"}, "`graph` must be one of.*'star'"),
        ({"step_size": 1.5}, r"`step_size` must be in \(0, 1\]; got 1.5"),
        ({"decay": 2.0}, "`decay` must be ≥ 0 and below"),
        ({"tau": 0.0}, "`tau` must be positive"),
        ({"l1": -1.0}, "`l1` must be ≥ 0"),
        ({"l2": float("nan")}, "`l2` must be ≥ 0"),
        ({"edge_probability": 0.0}, "`edge_probability` must be in"),
        ({"graph_seed": -1}, "`graph_seed` must be ≥ 0"),
        ({"batch_size": -1}, "`batch_size` must be ≥ 1, or 0"),
        ({"cores": 0}, "`cores` must be ≥ 1"),
        ({"inner_steps": 0}, "`inner_steps` must be ≥ 1"),
        ({"newton_steps": 0}, "`newton_steps` must be ≥ 1"),
    ],
)
def test_setting__out_of_bounds_is_refused(settings, rule):
    with pytest.raises(ValueError, match=rule):
        NEXT(**settings)


def test_validate__refuses_what_cannot_agree():
    team = Team.of(8, 10)
    for graph in ("ring", "complete", "erdos-renyi", "matchings"):
        NEXT(graph=graph).validate(team)
    NEXT().validate(Team.of(1, 10))
    with pytest.raises(ValueError, match="`edge_probability` must be large enough"):
        NEXT(graph="erdos-renyi", edge_probability=1e-3).validate(team)
    with pytest.raises(ValueError, match="`mixing_weights` must have 8 rows of 8"):
        NEXT(mixing_weights=((0.5, 0.5), (0.5, 0.5))).validate(team)
    with pytest.raises(ValueError, match=r"doubly stochastic; row 0 sums to 0\.9"):
        NEXT(mixing_weights=((0.9, 0.0), (0.0, 1.0))).validate(Team.of(2, 10))
