"""Direct feedback alignment: what it becomes with one layer, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocks.algorithm import Gradient, Node, Observation
from blocks.dfa import DirectFeedback
from blocks.feedback import GaussianFeedback
from blocks.sgd import SGD, AdamTraining


@pytest.mark.parametrize(
    ("settings", "twin"),
    [
        ({"optimiser": "adam", "step_size": 0.01}, AdamTraining(step_size=0.01)),
        ({"optimiser": "momentum", "step_size": 0.1}, SGD(step_size=0.1)),
    ],
    ids=["adam", "momentum"],
)
@pytest.mark.parametrize("name", ["quadratic", "logistic"])
def test_one_layer__is_back_propagation_bit_for_bit(
    settings, twin, name, session, problem
):
    algorithm = DirectFeedback(**settings, final_fraction=0.1)
    twin = type(twin)(step_size=twin.step_size, final_fraction=0.1)
    local, true = (session(a, problem(name)) for a in (algorithm, twin))
    for _ in range(20):
        same = torch.equal(
            local.advance(1, 20).solution(), true.advance(1, 20).solution()
        )
        assert same


def test_two_layers__learn_more_than_the_last_one_alone(session, problem, monkeypatch):
    small, algorithm = problem("mlp"), DirectFeedback(step_size=0.05)
    before = session(algorithm, small).solution_loss()
    together = session(algorithm, small).advance(200, n_steps=200).solution_loss()
    monkeypatch.setattr("blocks.dfa.GaussianFeedback", lambda seed: torch.zeros)
    alone = session(algorithm, small).advance(200, n_steps=200).solution_loss()
    assert together < 0.5 * alone < 0.5 * before


class Told:
    """An oracle that answers what it was told and keeps the matrix it was given."""

    device = torch.device("cpu")

    def __init__(self, *gradient):
        self.gradient = torch.tensor(gradient, dtype=torch.float64)

    def direct_feedback(self, params, buffers, feedback):
        self.matrix = feedback(3, 4)
        return Gradient(1.0, self.gradient, buffers)


def test_momentum__two_steps_by_hand_in_float64():
    algorithm = DirectFeedback(optimiser="momentum", step_size=0.1, momentum=0.5)
    oracle, rng = Told(0.5, -1.0), np.random.default_rng(0)
    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    state, message = algorithm.init(Node(0, 1, seed=9), start, oracle, rng)
    for k in range(2):
        seen = Observation(k, 0, algorithm.information)
        state, message = algorithm.step(state, seen, oracle, rng)
    # θ = (1, 2) − 0.1·(g + 1.5 g)
    expected = torch.tensor([0.875, 2.25], dtype=torch.float64)
    torch.testing.assert_close(message.point, expected, rtol=0, atol=1e-15)
    assert torch.equal(oracle.matrix, GaussianFeedback(9)(3, 4))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimiser", "sgd"),
        ("step_size", 0.0),
        ("step_size", float("inf")),
        ("momentum", 1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("batch_size", 0),
        ("final_fraction", 1.5),
    ],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        DirectFeedback(**{name: value})
