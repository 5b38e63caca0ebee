"""ND-CAO with K losses a version: pairs for its window, and steps from the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocks.algorithm import Information, LossRecord, Node, Observation, step_rng
from blocks.antithetic import antithetic_gradient
from blocks.conformance import CHECKS
from blocks.low_rank import draw_directions
from blocks.nd_cao import NDCAO
from blocks.optimisers import Adam
from blocks.probes import probe_points

D = 20
MATRICES = np.array([[2, 3, 5]])
LOSSES = (1.0, 3.0, 2.5, 2.0)


def init(algorithm, index=1, n_nodes=2, seed=11):
    node = Node(index, n_nodes, None, seed, matrices=MATRICES)
    return algorithm.init(node, torch.zeros(D), None, step_rng(seed, index, -1))


def step(algorithm, state, losses, scored, k, version=None):
    record = LossRecord("run", k if version is None else version, losses, (0, scored))
    observation = Observation(k, 100, Information.SHARED_LOSS, record)
    return algorithm.step(state, observation, None, step_rng(11, 1, k))


def directions_of(algorithm, scored):
    return draw_directions(
        11, 1, scored, algorithm.probes // 2, D, "sign", algorithm.rank, MATRICES
    )


# -- pairs for the window -------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_window__holds_the_probes_as_they_were_scored(rank):
    algorithm = NDCAO(window=24, probes=4, step_size=0.05, probe_std=0.02, rank=rank)
    state, message = init(algorithm)
    assert message.probe_std == 0.02
    state, _ = step(algorithm, state, LOSSES, 0, 0)
    dirs = directions_of(algorithm, 0).dense()
    expected = probe_points(torch.zeros(D), 0.02, dirs)
    held = state.window.rows + state.window.anchor
    assert torch.allclose(held, expected, atol=1e-7)
    assert state.window.losses.tolist() == list(LOSSES)


def test_window__leaves_out_a_probe_without_a_finite_loss():
    algorithm = NDCAO(window=24, probes=4, step_size=0.05)
    state, _ = init(algorithm)
    for k in range(3):
        state, _ = step(algorithm, state, LOSSES, k, k)
    after, _ = step(algorithm, state, (0.4, float("nan"), 0.2, 0.3), 3, 3)
    assert after.window.n_pairs == 12 + 3
    assert after.window.losses[-3:].tolist() == [0.4, 0.2, 0.3]


def test_low_rank_window__trains_a_network(session, problem):
    algorithm = NDCAO(window=32, probes=8, step_size=0.05, rank=1)
    played = session(algorithm, problem("mlp"), 2)
    assert any(len(state.matrices) for state in played.states)
    before = played.solution_loss()
    assert played.advance(150, n_steps=150).solution_loss() < 0.5 * before


# -- steps from the losses themselves -------------------------------------------------


def antithetic(**settings):
    given = {"probes": 4, "step_size": 0.01, "schedule": "constant", "probe_std": 0.05}
    return NDCAO(estimator="antithetic", **{**given, **settings})


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("optimiser", ["adam", "momentum", "none"])
def test_antithetic__two_steps_by_hand(optimiser, rank):
    algorithm = antithetic(optimiser=optimiser, momentum=0.8, rank=rank)
    state, _ = init(algorithm)
    centre, velocity, adam = torch.zeros(D), torch.zeros(D), Adam.zeros(torch.zeros(D))
    for k in range(2):
        state, message = step(algorithm, state, LOSSES, k, k)
        dirs = directions_of(algorithm, k)
        gradient = antithetic_gradient(np.array(LOSSES), 0.05, dirs)
        velocity = 0.8 * velocity + gradient
        adam, scaled = adam.step(gradient, 0.8, 0.999)
        moves = {"adam": scaled, "momentum": velocity, "none": gradient}
        centre = centre - 0.01 * moves[optimiser]
        torch.testing.assert_close(message.point, centre)
        assert torch.equal(message.solution, message.point)


def test_antithetic__takes_directions_and_std_of_the_step_that_was_scored():
    algorithm = antithetic(optimiser="none", probe_std=None, schedule="linear")
    state, _ = init(algorithm)
    state, first = step(algorithm, state, LOSSES, 0, 0)
    state, second = step(algorithm, state, LOSSES, 1, 1)
    assert second.probe_std != first.probe_std
    for scored, sent in ((1, first), (2, second)):
        late, _ = step(algorithm, state, LOSSES, scored, 2)
        dirs = directions_of(algorithm, scored)
        gradient = antithetic_gradient(np.array(LOSSES), sent.probe_std, dirs)
        moved = state.centre - late.centre
        cosine = torch.cosine_similarity(moved, gradient, dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-5)
        ratio = float(moved.norm() / gradient.norm())
        assert ratio == pytest.approx(0.01, rel=0.02)  # α of the third of 100 steps


def test_antithetic__holds_no_window():
    algorithm = antithetic(probes=256)
    state, _ = init(algorithm)
    losses = tuple(np.linspace(1.0, 2.0, 256).tolist())
    state, _ = step(algorithm, state, losses, 0, 0)
    assert state.window.n_pairs == 0


def test_antithetic__non_finite_loss_moves_nothing():
    algorithm = antithetic()
    state, first = init(algorithm)
    after, message = step(algorithm, state, (1.0, float("inf"), 2.0, 3.0), 0, 0)
    assert torch.equal(message.point, first.point)
    assert after.memory.n_steps == 0


def test_antithetic__record_already_folded_or_of_a_forgotten_point_moves_nothing():
    algorithm = antithetic()
    state, _ = init(algorithm)
    for k in range(3):
        state, message = step(algorithm, state, LOSSES, k, k)
    _, again = step(algorithm, state, LOSSES, 2, 3, version=2)
    late, forgotten = step(algorithm, state, LOSSES, 0, 3, version=7)
    assert torch.equal(again.point, message.point)
    assert torch.equal(forgotten.point, message.point)
    assert late.version == 7


@pytest.mark.parametrize("optimiser", ["adam", "momentum", "none"])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_antithetic__reaches_the_minimum_of_a_quadratic(
    session, problem, optimiser, n_blocks
):
    step_size = 0.1 if optimiser == "adam" else 0.02
    algorithm = NDCAO(
        estimator="antithetic",
        optimiser=optimiser,
        probes=16,
        step_size=step_size,
        step_size_final=0.001,
        probe_std=0.02,
    )
    played = session(algorithm, problem("quadratic"), n_blocks)
    assert played.advance(200, n_steps=200).solution_loss() < 1e-3


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("rank", [0, 1])
def test_antithetic__keeps_the_contract(check, rank):
    check(NDCAO(estimator="antithetic", probes=16, step_size=0.03, rank=rank))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 1}, '`probes` must be even with `estimator` = "antithetic"'),
        ({"momentum": 1.0}, "`momentum` must lie in"),
        ({"rank": -1}, "`rank` must be 0"),
        ({"images": (1, 2, 3)}, "`images` must be None"),
    ],
)
def test_antithetic__setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        antithetic(**settings)
