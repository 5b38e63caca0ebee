"""Random search: what is kept, and which point a loss belongs to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blocks.algorithm import Information, LossRecord, Node, Observation, step_rng
from blocks.random_search import RandomSearch

START = torch.tensor([0.5, -0.5, 1.0])
ALGORITHM = RandomSearch(noise_std=0.1)


class Block:
    """Node 1 of two, folding the losses it is told."""

    def __init__(self, algorithm=ALGORITHM):
        self.algorithm = algorithm
        node, rng = Node(1, 2), np.random.default_rng(0)
        self.state, message = algorithm.init(node, START, None, rng)
        self.points = [message.point]
        self.message = message

    def fold(self, loss, scored=None, subset=0, version=None):
        """Fold a loss of the point of step ``scored``: the newest by default."""
        step = len(self.points) - 1
        scored = step if scored is None else scored
        version = step if version is None else version
        record = LossRecord("run", version, (loss,), (0, scored), subset)
        seen = Observation(step, 100, Information.SHARED_LOSS, record)
        self.state, self.message = self.algorithm.step(
            self.state, seen, None, step_rng(0, 1, step)
        )
        self.points.append(self.message.point)
        return self.message


def test_first_score__is_that_of_the_initial_parameters():
    block = Block()
    assert torch.equal(block.message.point, START)
    assert torch.equal(block.fold(3.0).answer, START)
    assert block.state.best_loss == 3.0


def test_candidate__is_a_gaussian_step_from_the_best():
    message = Block().fold(3.0)
    noise = step_rng(0, 1, 0).standard_normal(3, dtype=np.float32)
    torch.testing.assert_close(message.point, START + 0.1 * torch.tensor(noise))


def test_step_length__decays_to_the_final_fraction():
    lengths = []
    for step in (0, 100):
        big = torch.zeros(20_000)
        node, rng = Node(0, 1), np.random.default_rng(0)
        state, _ = ALGORITHM.init(node, big, None, rng)
        record = LossRecord("run", 0, (1.0,), (0,))
        seen = Observation(step, 100, Information.SHARED_LOSS, record)
        _, message = ALGORITHM.step(state, seen, None, rng)
        lengths.append(float(message.point.std()))
    np.testing.assert_allclose(lengths, [0.1, 0.01], rtol=0.02)


def test_candidate__is_kept_only_where_the_loss_fell():
    block = Block()
    block.fold(3.0)
    assert torch.equal(block.fold(3.0).answer, START)
    assert torch.equal(block.fold(3.5).answer, START)
    better = block.points[-1]
    assert torch.equal(block.fold(2.9).answer, better)
    assert torch.equal(block.fold(2.95).answer, better)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss__that_is_not_finite_never_becomes_the_best(bad):
    block = Block()
    assert torch.equal(block.fold(bad).answer, START)
    better = block.points[-1]
    assert torch.equal(block.fold(2.0).answer, better)
    assert torch.equal(block.fold(bad).answer, better)
    assert block.state.best_loss == 2.0


def test_late_loss__is_credited_to_the_point_that_was_scored():
    block = Block()
    for loss in (3.0, 3.1, 3.2):
        block.fold(loss)
    scored = block.points[3]
    block.fold(3.3, scored=2, version=3)  # a second look at an older point
    assert torch.equal(block.fold(1.0, scored=3, version=4).answer, scored)


def test_loss__of_a_forgotten_point_is_not_credited_to_another():
    block = Block()
    for loss in (3.0, 3.1, 3.2):
        block.fold(loss)
    assert torch.equal(block.fold(1.0, scored=0).answer, START)
    assert block.state.best_loss == 3.0


def test_same_record_again__changes_nothing():
    block = Block()
    block.fold(3.0, version=0)
    before, point = block.state, block.message.point
    again = block.fold(1.0, version=0)
    assert block.state is before
    assert torch.equal(again.point, point)


def test_new_subset__measures_the_best_again_first():
    block = Block()
    block.fold(3.0)
    block.fold(2.0)
    best = block.message.answer
    assert torch.equal(block.fold(0.1, subset=1).point, best)
    assert torch.equal(block.fold(5.0, subset=1).answer, best)
    assert block.state.best_loss == 5.0
    better = block.points[-1]
    assert torch.equal(block.fold(4.0, subset=1).answer, better)


def test_points_held__are_only_those_that_may_still_be_scored():
    block = Block()
    for k in range(50):
        block.fold(3.0 - 0.01 * k)
    assert len(block.state.sent) == 2


def test_joint_candidate__is_kept_or_dropped_by_all_blocks_together(session, problem):
    played = session(RandomSearch(noise_std=0.3), problem("quadratic"), 3)
    losses = [played.solution_loss()]
    for _ in range(200):
        played.advance(1, n_steps=200)
        losses.append(played.solution_loss())
        assert len({state.best_loss for state in played.states}) == 1
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise_std", 0.0), ("noise_std", math.inf), ("final_fraction", 1.5)],
)
def test_setting__out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value}"):
        RandomSearch(**{name: value})
