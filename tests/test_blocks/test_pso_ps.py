"""PSO-PS: its limits, what becomes a best, and one move of the swarm by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from blocks.algorithm import Gradient, Observation
from blocks.optimisers import Momentum
from blocks.pso_ps import PSOPS, Found, PSOPSState
from blocks.rehearsal import Session
from blocks.replica import Replica
from blocks.team import Team

N_NODES = 3
STILL = {"inertia": 0.0, "cognitive": 0.0, "social": 0.0}


class Regression:
    """Logistic regression in float64: every node has its own walk over 24 samples."""

    def __init__(self, broken=()):
        rng = np.random.default_rng(4)
        self.inputs = torch.tensor(rng.standard_normal((24, 5)))
        self.signs = torch.tensor(rng.choice([-1.0, 1.0], 24))
        self.first = torch.tensor(rng.standard_normal(5))
        self.broken = set(broken)  # (node, step) with a gradient that is not finite
        self.model = self

    def initial_params(self):
        return self.first.clone()

    def gradient(self, params, step, node):
        if (node, step) in self.broken:
            return torch.full_like(params, math.nan)
        rows = [(4 * step + 7 * node + i) % 24 for i in range(4)]
        margins = self.signs[rows] * (self.inputs[rows] @ params)
        slopes = -self.signs[rows] * torch.sigmoid(-margins)
        return self.inputs[rows].T @ slopes / len(rows)

    def mean_loss(self, params):
        margins = self.signs * (self.inputs @ params)
        return float(torch.nn.functional.softplus(-margins).mean())

    def oracle(self, allowed, step=0, node=0):
        return Answers(self, step, node)


@dataclass
class Answers:
    """What one node may ask of it at one step."""

    problem: Regression
    step: int
    node: int

    def gradient(self, params, buffers, minibatch=None, part=None):
        found = self.problem.gradient(params, self.step, self.node)
        return Gradient(0.5, found, buffers)

    def common_loss(self, params, buffers=None):
        return self.problem.mean_loss(params)


def start(problem=None, **settings) -> Session:
    problem = problem or Regression()
    return Session.start(PSOPS(**settings), problem, n_nodes=N_NODES)


def positions(session):
    return [state.replica.params for state in session.states]


# -- limits ---------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_motion__is_independent_sgd_runs_bit_for_bit(momentum):
    session = start(**STILL, momentum=momentum, exchange_every=4).advance(50, 50)
    problem, algorithm = Regression(), session.algorithm
    for node, position in enumerate(positions(session)):
        own = Replica(problem.first, None, Momentum.zeros(problem.first))
        for k in range(50):
            seen = Observation(k, 50, algorithm.information)
            gradient = problem.gradient(own.params, k, node)
            own = algorithm.descend(own, gradient, None, seen)
        assert torch.equal(position, own.params)


class Half:
    """A generator that draws ½ every time."""

    def random(self):
        return 0.5


def met(session):
    """Every node's (before, after the swarm's move), at its next step."""
    found = []
    for moment in session.moments(100):
        problem = Regression()
        algorithm = replace(session.algorithm, step_size=1e-300, momentum=0.0)
        oracle = problem.oracle(None, moment.observation.step, moment.node)
        state, _ = algorithm.step(moment.state, moment.observation, oracle, Half())
        found.append((moment.state, state))
    return found


def test_social_pull_of_one__continues_everywhere_from_the_best_weights():
    settings = {"inertia": 0.0, "cognitive": 0.0, "social": 2.0}
    session = start(**settings, exchange_every=5).advance(10)
    losses = [state.fresh.loss for state in session.states]
    best = session.states[int(np.argmin(losses))].replica.params
    assert min(losses) < session.states[0].best.loss
    for _, after in met(session):
        assert float((after.replica.params - best).abs().max()) <= 1e-10
        assert torch.equal(after.best.params, best)


def test_move__by_hand():
    session = start(inertia=0.5, cognitive=0.4, social=1.0, exchange_every=5)
    session.advance(10)
    losses = [state.fresh.loss for state in session.states]
    best = session.states[int(np.argmin(losses))].replica.params
    for before, after in met(session):
        x = before.replica.params
        velocity = (
            0.5 * before.velocity
            + 0.4 * 0.5 * (before.personal.params - x)
            + 1.0 * 0.5 * (best - x)
        )
        torch.testing.assert_close(after.velocity, velocity)
        torch.testing.assert_close(after.replica.params, x + velocity)


# -- what becomes a best --------------------------------------------------------------


@pytest.mark.parametrize("inertia", [0.0, 0.9])
def test_best_loss__never_increases(inertia):
    # A step size that overshoots: losses rise and fall.
    session = start(inertia=inertia, social=1.5, step_size=2.0, exchange_every=3)
    told, losses = [session.states[0].best.loss], [session.solution_loss()]
    for _ in range(60):
        session.advance(1, n_steps=60)
        told.append(session.states[0].best.loss)
        losses.append(session.solution_loss())
    assert told == sorted(told, reverse=True)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_best__is_the_same_bits_on_all_nodes_and_its_loss_is_its_own():
    session = start(social=1.5, step_size=1.0, exchange_every=3)
    for _ in range(20):
        session.advance(1)
        best = [state.best for state in session.states]
        for found in best:
            assert torch.equal(found.params, best[0].params)
            assert found.loss == session.problem.mean_loss(found.params)


def test_answer__is_the_best_of_all_as_soon_as_it_is_measured():
    session = start(exchange_every=4).advance(4)
    losses = [session.problem.mean_loss(x) for x in positions(session)]
    assert session.solution_loss() == min(losses)


def test_last_step__measures_though_no_meeting_is_due():
    session = start(exchange_every=4).advance(7, n_steps=7)
    losses = [session.problem.mean_loss(x) for x in positions(session)]
    assert session.solution_loss() == min(losses)


def test_nan__never_becomes_a_best():
    problem = Regression(broken={(0, 2), (1, 5), (2, 9)})
    session = start(problem, exchange_every=3)
    for _ in range(15):
        session.advance(1)
        assert math.isfinite(session.solution_loss())
        for state in session.states:
            for found in (state.best, state.personal):
                assert math.isfinite(found.loss)
                assert bool(torch.isfinite(found.params).all())


def test_everything_broken__leaves_the_first_weights_as_the_answer():
    problem = Regression({(node, step) for node in range(3) for step in range(9)})
    session = start(problem, exchange_every=3).advance(9)
    assert torch.equal(session.solution(), problem.first)


def test_weights_that_are_not_finite__restart_from_the_best_at_rest():
    problem = Regression(broken={(0, 4)})
    session = start(problem, inertia=0.9, exchange_every=3).advance(6)
    assert not bool(torch.isfinite(positions(session)[0]).all())
    _, after = met(session)[0]
    assert torch.equal(after.replica.params, after.best.params)
    assert not bool(after.velocity.any())
    # The optimiser's memory is new as well: it holds this step's gradient alone.
    gradient = problem.gradient(after.best.params, 6, 0)
    assert torch.equal(after.replica.optimiser.velocity, gradient)
    assert bool(torch.isfinite(positions(session.advance(1))[0]).all())


def test_buffers__that_are_not_finite_restart_too():
    algorithm, x = PSOPS(exchange_every=1), torch.zeros(2)
    best = Found(x, torch.ones(1), 1.0)
    replica = Replica(x, torch.tensor([math.nan]), Momentum.zeros(x))
    state = PSOPSState(0, replica, x, best, best)
    scalars = ((1.0, 1.0), (1.0, 1.0))
    seen = Observation(1, 0, algorithm.information, None, {}, scalars)
    state, _ = algorithm.step(state, seen, Steady(), np.random.default_rng(0))
    assert torch.equal(state.replica.buffers, best.buffers)


class Steady:
    """An oracle of gradient 0 and loss 2."""

    def gradient(self, params, buffers, minibatch=None, part=None):
        return Gradient(2.0, torch.zeros_like(params), buffers)

    def common_loss(self, params, buffers=None):
        return 2.0


# -- who listens to whom --------------------------------------------------------------


def test_senders__the_new_best_alone_and_only_at_a_meeting():
    algorithm, team = PSOPS(exchange_every=4), Team.of(3, 100)
    scalars = ((0.5, 0.5), (0.3, 0.5), (0.4, 0.5))
    heard = [algorithm.senders(node, team, 8, scalars) for node in range(3)]
    assert heard == [(1,), (), (1,)]
    assert algorithm.senders(0, team, 7, scalars) == ()


def test_senders__nobody_where_the_best_stays():
    algorithm, team = PSOPS(exchange_every=4), Team.of(2, 100)
    assert algorithm.senders(0, team, 8, ((0.5, 0.5), (0.5, 0.5))) == ()
    inf = math.inf
    assert algorithm.senders(0, team, 8, ((inf, inf), (inf, inf))) == ()


def test_message__carries_weights_only_where_they_may_be_the_new_best():
    session = start(exchange_every=4)
    for step in range(1, 9):
        session.advance(1)
        for message in session.messages:
            improved = message.scalars[0] < message.scalars[1]
            assert bool(message.payload) is improved
            assert not improved or step % 4 == 0


def test_generator__decides_how_far_a_particle_flies():
    session = start(social=1.0, exchange_every=2).advance(2)
    losses = [state.fresh.loss for state in session.states]
    moment = session.moments()[int(np.argmax(losses))]
    ends = {
        float(session.take(replace(moment, seed=seed))[0].replica.params[0])
        for seed in range(4)
    }
    assert len(ends) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inertia", -0.1),
        ("cognitive", math.inf),
        ("social", math.nan),
        ("exchange_every", 0),
        ("momentum", 1.0),
    ],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        PSOPS(**{name: value})
