"""NoSync: its limits, its attractors, its ramps, and who listens to whom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from blocks.algorithm import Gradient, Observation
from blocks.nosync import NoSync, NoSyncState, loss_weights
from blocks.optimisers import Momentum
from blocks.rehearsal import Session
from blocks.replica import Replica
from blocks.team import Team

N_NODES = 3


class Regression:
    """Logistic regression in float64: every node has its own walk over 24 samples."""

    def __init__(self):
        rng = np.random.default_rng(4)
        self.inputs = torch.tensor(rng.standard_normal((24, 5)))
        self.signs = torch.tensor(rng.choice([-1.0, 1.0], 24))
        self.first = torch.tensor(rng.standard_normal(5))
        self.model = self

    def initial_params(self):
        return self.first.clone()

    def rows(self, step, node):
        return [(4 * step + 7 * node + i) % 24 for i in range(4)]

    def gradient(self, params, rows):
        margins = self.signs[rows] * (self.inputs[rows] @ params)
        slopes = -self.signs[rows] * torch.sigmoid(-margins)
        return self.inputs[rows].T @ slopes / len(rows)

    def oracle(self, allowed, step=0, node=0):
        return Answers(self, step, node)


@dataclass
class Answers:
    """What one node may ask of it at one step."""

    problem: Regression
    step: int
    node: int

    def gradient(self, params, buffers, minibatch=None, part=None):
        rows = self.problem.rows(self.step, self.node)
        return Gradient(0.5, self.problem.gradient(params, rows), buffers)


def played(n_rounds, n_nodes=N_NODES, **settings) -> Session:
    session = Session.start(NoSync(**settings), Regression(), n_nodes=n_nodes)
    return session.advance(n_rounds, n_steps=n_rounds)


def points(session):
    return [message.point for message in session.messages]


# -- limits ---------------------------------------------------------------------------


def alone(node, n_rounds, algorithm) -> torch.Tensor:
    """(P,) what plain SGD with momentum makes of one node's minibatches."""
    problem = Regression()
    replica = Replica(problem.first, None, Momentum.zeros(problem.first))
    for k in range(n_rounds):
        seen = Observation(k, n_rounds, algorithm.information)
        gradient = problem.gradient(replica.params, problem.rows(k, node))
        replica = algorithm.descend(replica, gradient, None, seen)
    return replica.params


@pytest.mark.parametrize("attractor", ["mean", "best", "random", "loss-weighted"])
def test_no_pull__is_independent_workers_bit_for_bit(attractor):
    session = played(50, pull=0.0, exchange_every=1, attractor=attractor)
    assert session.bytes_moved == 0
    for node, point in enumerate(points(session)):
        assert torch.equal(point, alone(node, 50, session.algorithm))


@pytest.mark.parametrize("every", [1, 4, 50])
def test_full_pull_to_the_mean__is_parameter_averaging(every):
    settings = {"pull": 1.0, "pressure": "none", "exchange_every": every}
    session = played(50, **settings)
    problem, algorithm = Regression(), session.algorithm
    first = problem.first
    replicas = [Replica(first, None, Momentum.zeros(first)) for _ in range(N_NODES)]
    for k in range(50):
        seen = Observation(k, 50, algorithm.information)
        if k and k % every == 0:
            average = torch.stack([r.params for r in replicas]).mean(0)
            replicas = [Replica(average, None, r.optimiser) for r in replicas]
        for node, replica in enumerate(replicas):
            gradient = problem.gradient(replica.params, problem.rows(k, node))
            replicas[node] = algorithm.descend(replica, gradient, None, seen)
    for point, replica in zip(points(session), replicas, strict=True):
        assert float((point - replica.params).abs().max()) <= 1e-10


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_full_pull_at_every_step__is_synchronous_sgd(momentum):
    settings = {"pull": 1.0, "pressure": "none", "exchange_every": 1}
    session = played(50, momentum=momentum, **settings)
    problem, algorithm = Regression(), session.algorithm
    replica = Replica(problem.first, None, Momentum.zeros(problem.first))
    for k in range(50):
        seen = Observation(k, 50, algorithm.information)
        rows = [row for node in range(N_NODES) for row in problem.rows(k, node)]
        gradient = problem.gradient(replica.params, rows)
        replica = algorithm.descend(replica, gradient, None, seen)
    assert float((session.solution() - replica.params).abs().max()) <= 1e-10


# -- the pull -------------------------------------------------------------------------

OWN = torch.tensor([1.0, 1.0], dtype=torch.float64)
MODELS = {
    0: torch.tensor([0.0, 2.0], dtype=torch.float64),
    1: OWN,
    2: torch.tensor([5.0, -3.0], dtype=torch.float64),
}
LOSSES = {0: 0.4, 1: 0.8, 2: 0.6}


class Flat:
    """An oracle whose gradient is zero."""

    def gradient(self, params, buffers, minibatch=None, part=None):
        return Gradient(0.7, torch.zeros_like(params), buffers)


def pulled(models=None, losses=None, step=8, n_steps=16, buffers=None, **settings):
    """Node 1's parameters (and buffers) after one exchange without a gradient."""
    algorithm = NoSync(pressure=settings.pop("pressure", "none"), **settings)
    models, losses = models or MODELS, losses or LOSSES
    told = algorithm.attractor in ("best", "loss-weighted")
    inbox: dict[int, Any] = {}
    for node, model in models.items():
        extra = () if buffers is None else (buffers[node],)
        loss = (torch.tensor([losses[node]], dtype=torch.float64),) if told else ()
        inbox[node] = (model, *extra, *loss)
    own = None if buffers is None else buffers[1]
    replica = Replica(models[1], own, Momentum.zeros(OWN))
    state = NoSyncState(1, replica, torch.tensor([0.8], dtype=torch.float64))
    seen = Observation(step, n_steps, algorithm.information, None, inbox)
    state, message = algorithm.step(state, seen, Flat(), np.random.default_rng(0))
    return message


def test_mean__of_all_models_the_own_one_included():
    message = pulled(pull=0.25)
    mean = (MODELS[0] + MODELS[1] + MODELS[2]) / 3
    torch.testing.assert_close(message.point, OWN + 0.25 * (mean - OWN))


def test_best__is_the_model_with_the_smallest_training_loss():
    message = pulled(pull=0.25, attractor="best")
    torch.testing.assert_close(message.point, OWN + 0.25 * (MODELS[0] - OWN))


def test_best__a_node_that_is_itself_the_best_stays():
    message = pulled(pull=0.25, attractor="best", losses={0: 1.0, 1: 0.5, 2: 0.6})
    assert torch.equal(message.point, OWN)


def test_random__is_the_other_model_that_was_sent():
    message = pulled({1: OWN, 2: MODELS[2]}, pull=0.5, attractor="random")
    torch.testing.assert_close(message.point, 0.5 * (OWN + MODELS[2]))


def test_loss_weighted__prefers_smaller_losses():
    message = pulled(pull=1.0, attractor="loss-weighted")
    weights = np.exp(-np.array([0.4, 0.8, 0.6]) / 0.6)
    weights /= weights.sum()
    expected = sum(w * m for w, m in zip(weights, MODELS.values(), strict=True))
    torch.testing.assert_close(message.point, expected)


@pytest.mark.parametrize("attractor", ["best", "loss-weighted"])
def test_loss__that_is_not_finite_attracts_nobody(attractor):
    models = {**MODELS, 0: torch.full_like(OWN, math.nan)}
    losses = {**LOSSES, 0: math.nan}
    message = pulled(models, losses, pull=1.0, attractor=attractor)
    assert bool(torch.isfinite(message.point).all())
    nobody = pulled(losses=dict.fromkeys(MODELS, math.inf), attractor=attractor)
    assert torch.equal(nobody.point, OWN)


def test_loss_weights__are_equal_for_equal_losses_zero_included():
    for loss in (0.0, 2.5):
        assert loss_weights([loss] * 4) == [0.25] * 4


def test_loss_weights__do_not_depend_on_the_unit_of_the_loss():
    small, large = loss_weights([0.1, 0.2, 0.4]), loss_weights([10.0, 20.0, 40.0])
    np.testing.assert_allclose(small, large, rtol=1e-12)


def test_buffers__are_pulled_as_parameters_are():
    buffers = {j: torch.tensor([float(j)], dtype=torch.float64) for j in MODELS}
    message = pulled(pull=0.5, buffers=buffers, attractor="best")
    torch.testing.assert_close(message.buffers, buffers[1] * 0.5)


@pytest.mark.parametrize(
    ("pressure", "step", "n_steps", "share"),
    [
        ("none", 8, 32, 1.0),
        ("linear", 8, 32, 0.25),
        ("linear", 32, 32, 1.0),
        ("cosine", 8, 32, 0.5 - 0.5 * math.cos(math.pi / 4)),
        ("cosine", 32, 32, 1.0),
        ("linear", 8, 0, 1.0),
    ],
)
def test_pressure__grows_over_the_run(pressure, step, n_steps, share):
    message = pulled(
        pull=0.5, attractor="best", pressure=pressure, step=step, n_steps=n_steps
    )
    expected = OWN + 0.5 * share * (MODELS[0] - OWN)
    torch.testing.assert_close(message.point, expected)


def test_pull__only_at_a_step_that_exchanges():
    # In asynchronous runs nothing is delivered at other steps; it would not be used.
    assert torch.equal(pulled(pull=1.0, step=9, exchange_every=8).point, OWN)


def test_velocity__is_not_pulled():
    session = played(9, pull=1.0, pressure="none", exchange_every=8)
    first, second = (state.replica.optimiser.velocity for state in session.states[:2])
    assert not torch.equal(first, second)


# -- who listens to whom --------------------------------------------------------------


def test_senders__all_others_at_exchanges_and_nobody_between():
    team = Team.of(4, 100, seed=1)
    algorithm = NoSync(exchange_every=3)
    heard = [algorithm.senders(2, team, step, ()) for step in range(7)]
    assert heard == [(), (), (), (0, 1, 3), (), (), (0, 1, 3)]


def test_senders__a_random_peer_is_every_other_node_now_and_then():
    team = Team.of(4, 100, seed=1)
    algorithm = NoSync(exchange_every=1, attractor="random")
    heard = [algorithm.senders(2, team, step, ()) for step in range(1, 60)]
    assert set(heard) == {(0,), (1,), (3,)}
    assert heard == [algorithm.senders(2, team, step, ()) for step in range(1, 60)]
    other = Team.of(4, 100, seed=2)
    assert heard != [algorithm.senders(2, other, step, ()) for step in range(1, 60)]


def test_one_node__listens_to_nobody():
    session = played(20, n_nodes=1, exchange_every=1, pull=1.0)
    assert torch.equal(points(session)[0], alone(0, 20, session.algorithm))


def test_payload__tells_the_training_loss_only_where_it_counts():
    for attractor, size in (("mean", 1), ("random", 1), ("best", 2)):
        session = played(1, attractor=attractor)
        assert len(session.messages[0].payload) == size


def test_recent_loss__is_a_running_mean():
    session = played(2, attractor="best")
    assert float(session.states[0].loss) == pytest.approx(0.5)  # 0.5 and 0.5
    assert math.isinf(float(played(0).states[0].loss))


@pytest.mark.parametrize(
    ("name", "value"),
    [("pull", -0.1), ("pull", 1.5), ("exchange_every", 0), ("step_size", 0.0)],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        NoSync(**{name: value})
