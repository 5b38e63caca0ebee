"""Node-based communication: its three limits, weights and bytes."""

from __future__ import annotations

import pytest
import torch

from blocks.all_reduce import AllReduceSGD
from blocks.local_sgd import LocalSGD
from blocks.node_based import NodeBased
from blocks.team import Team

SETTINGS = [
    pytest.param({}, id="momentum"),
    pytest.param({"momentum": 0.0}, id="plain"),
    pytest.param({"weight_decay": 0.05, "final_fraction": 0.2}, id="weight-decay"),
]
with_settings = pytest.mark.parametrize("settings", SETTINGS)
STEPS = 50
CLOSE = {"rtol": 0, "atol": 1e-10}


@with_settings
def test_one_machine__is_synchronous_sgd(settings, session, double):
    based = session(NodeBased(exchange_every=7, **settings), double(4), n_nodes=4)
    together = session(AllReduceSGD(**settings), double(4), n_nodes=4)
    found = based.advance(STEPS, STEPS).solution()
    expected = together.advance(STEPS, STEPS).solution()
    torch.testing.assert_close(found, expected, **CLOSE)


@with_settings
@pytest.mark.parametrize("period", [1, 7])
def test_one_replica_a_machine__is_local_sgd(period, settings, session, double):
    period = {"exchange_every": period}
    based = NodeBased(**period, **settings)
    based = session(based, double(3), n_nodes=3, machines=3)
    local = session(LocalSGD(**period, **settings), double(3), n_nodes=3)
    found = based.advance(STEPS, STEPS).solution()
    torch.testing.assert_close(found, local.advance(STEPS, STEPS).solution(), **CLOSE)


@with_settings
@pytest.mark.parametrize(("n", "machines"), [(4, 2), (5, 2), (5, 3)])
def test_exchange_at_every_step__is_synchronous_sgd(
    n, machines, settings, session, double
):
    based = NodeBased(exchange_every=1, **settings)
    based = session(based, double(n), n_nodes=n, machines=machines)
    together = session(AllReduceSGD(**settings), double(n), n_nodes=n)
    found = based.advance(STEPS, STEPS).solution()
    expected = together.advance(STEPS, STEPS).solution()
    torch.testing.assert_close(found, expected, **CLOSE)


def test_replicas_of_a_machine__stay_the_same_bit_for_bit(session, double, bits_of):
    algorithm = NodeBased(exchange_every=3)
    played = session(algorithm, double(5), n_nodes=5, machines=2)
    assert played.team.machines == (0, 0, 0, 1, 1)
    for step in range(1, 11):
        played.advance(1)
        bits = [bits_of(state.replica) for state in played.states]
        assert bits[0] == bits[1] == bits[2]
        assert bits[3] == bits[4]
        points = [message.point for message in played.messages]
        assert torch.equal(points[0], points[4]) is (step % 3 == 0)


def test_exchange__takes_the_mean_over_replicas_not_machines(session, double):
    def play(algorithm):
        return session(algorithm, double(5), n_nodes=5, machines=2).advance(6, 0)

    exchanged = play(NodeBased(exchange_every=6)).messages
    apart = play(NodeBased(exchange_every=100)).messages
    mean = 0.6 * apart[0].point + 0.4 * apart[4].point
    for message in exchanged:
        torch.testing.assert_close(message.point, mean, **CLOSE)


def test_period_zero__is_one_epoch():
    algorithm, team = NodeBased(batch_size=4), Team.of(4, 23, machines=2)
    assert [k for k in range(12) if algorithm.exchanges(k, team)] == [4, 9]
    assert [len(algorithm.senders(0, team, k, ())) for k in (3, 4)] == [1, 3]


def test_bytes__between_machines_move_at_exchanges_only(session, double):
    algorithm = NodeBased(exchange_every=4)
    played = session(algorithm, double(4), n_nodes=4, machines=2)
    moved = []
    for _ in range(5):
        before = played.bytes_moved
        played.advance(1)
        moved.append(played.bytes_moved - before)
    vector = 15 * 8
    # At an exchange: 3 gradients each, and every coasting point but one's own.
    gradients, points = 4 * 3 * vector, (2 * 3) * vector
    within = 4 * 1 * vector
    assert moved == [within, within, within, gradients + points, within]


def test_period__below_zero_is_refused():
    with pytest.raises(ValueError, match=r"`exchange_every` must be at least 0"):
        NodeBased(exchange_every=-1)
