"""Local SGD: what is averaged, when, and what it is with p = 1."""

from __future__ import annotations

import pytest
import torch

from blocks.all_reduce import AllReduceSGD
from blocks.local_sgd import LocalSGD
from blocks.sgd import SGD

STEPS = 50


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.0}, {"weight_decay": 0.05, "final_fraction": 0.2}]
)
def test_exchange_at_every_step__is_synchronous_sgd(settings, session, double):
    local = session(LocalSGD(exchange_every=1, **settings), double(3), n_nodes=3)
    together = session(AllReduceSGD(**settings), double(3), n_nodes=3)
    torch.testing.assert_close(
        local.advance(STEPS, STEPS).solution(),
        together.advance(STEPS, STEPS).solution(),
        rtol=0,
        atol=1e-10,
    )


def test_nodes__train_alone_until_the_first_exchange(session, double):
    played = session(LocalSGD(exchange_every=8), double(3), n_nodes=3).advance(8)
    for node, message in enumerate(played.messages):
        small = double(3)
        alone = session(SGD(), small, n_nodes=1)
        for _ in range(8):
            moment = alone.moments()[0]
            oracle = small.oracle(None, alone.step, node)
            answer = SGD().step(moment.state, moment.observation, oracle, None)
            alone.states[0], alone.messages[0] = answer
            alone.step += 1
        assert torch.equal(message.point, alone.messages[0].point)


def test_exchange__moves_everybody_to_the_mean_and_leaves_velocities(session, double):
    algorithm = LocalSGD(exchange_every=4, step_size=1e-300)
    played = session(algorithm, double(3), n_nodes=3).advance(4)
    states = [
        type(s)(s.params + 0.1 * i, None, s.optimiser)
        for i, s in enumerate(played.states)
    ]
    played.messages = [
        type(m)(s.params, payload=(s.params,))
        for s, m in zip(states, played.messages, strict=True)
    ]
    played.states = states
    before = [s.optimiser.velocity for s in states]
    mean = (states[0].params + states[1].params + states[2].params) / 3
    played.advance(1)
    for i, state in enumerate(played.states):
        assert torch.equal(state.params, mean)  # α is too small to move anything
        answer = double(3).oracle(None, 4, i).gradient(mean, None)
        velocity = 0.9 * before[i] + answer.gradient
        torch.testing.assert_close(state.optimiser.velocity, velocity)


def test_bytes__move_at_exchanges_only(session, double):
    played = session(LocalSGD(exchange_every=4), double(3), n_nodes=3)
    moved = []
    for _ in range(9):
        before = played.bytes_moved
        played.advance(1)
        moved.append(played.bytes_moved - before)
    one = 3 * 2 * 15 * 8
    assert moved == [0, 0, 0, 0, one, 0, 0, 0, one]


def test_period__below_one_is_refused():
    with pytest.raises(ValueError, match=r"`exchange_every` must be at least 1; got 0"):
        LocalSGD(exchange_every=0)
