"""The vocabulary of the interface: records, messages, observations, random streams."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from blocks.algorithm import (
    Information,
    InformationError,
    LossRecord,
    Message,
    Observation,
    step_rng,
)

RECORD = LossRecord("run", 4, (1.0, 2.0, 6.0), (4, 3))


def test_record__loss_is_the_mean_of_its_losses():
    assert RECORD.loss == 3.0


def test_message__stands_for_its_answer_or_else_its_point():
    point, answer = torch.zeros(3), torch.ones(3)
    assert Message(point).solution is point
    assert Message(point, answer).solution is answer


def test_message__counts_the_bytes_of_all_its_arrays():
    assert Message(torch.zeros(3)).n_bytes == 12
    full = Message(torch.zeros(3), torch.zeros(3), 0.1, torch.zeros(2))
    assert full.n_bytes == 32


@pytest.mark.parametrize("allowed", list(Information))
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("record", Information.SHARED_LOSS | Information.PER_SAMPLE_LOSS),
        ("inbox", Information.NEIGHBOURS),
    ],
)
def test_observation__shows_only_what_is_declared(allowed, name, flags):
    observation = Observation(0, 10, allowed, RECORD, {1: Message(torch.zeros(1))})
    if allowed & flags:
        assert getattr(observation, name)
    else:
        with pytest.raises(InformationError, match=rf"`observation\.{name}`.*flag"):
            getattr(observation, name)


def test_observation__without_a_record_says_so():
    with pytest.raises(ValueError, match=r"`observation\.record` must be set"):
        _ = Observation(0, 10, Information.SHARED_LOSS).record


def draws(*key, n=2000):
    return step_rng(*key).standard_normal(n)


def test_step_rng__is_a_function_of_its_key():
    np.testing.assert_array_equal(draws(7, 3, 5, 1), draws(7, 3, 5, 1))


def test_step_rng__streams_of_different_keys_are_independent():
    keys = list(itertools.product((0, 1, 2**62), (0, 1, 9), (-1, 0, 1, 999), (0, 1)))
    streams = np.array([draws(*key) for key in keys])
    correlations = np.corrcoef(streams)[np.triu_indices(len(keys), 1)]
    # Of 2,556 correlations of 2,000 pairs, each of standard deviation 0.022.
    assert np.abs(correlations).max() < 5.5 / np.sqrt(2000)
    assert abs(correlations.std() * np.sqrt(2000) - 1) < 0.1


def test_step_rng__steps_count_the_generator_so_that_streams_never_meet():
    def counter(rng):
        return rng.bit_generator.state["state"]["counter"].tolist()

    assert counter(step_rng(1, 2, 6)) == [0, 0, 0, 7]
    used = step_rng(1, 2, 6)
    used.standard_normal(100_000)
    assert counter(used)[1:] == [0, 0, 7]  # 2**192 blocks lie before the next step's


def test_step_rng__key_holds_seed_purpose_and_node():
    key = step_rng(2**63 - 1, 5, 0, purpose=3).bit_generator.state["state"]["key"]
    assert key.tolist() == [2**63 - 1, (3 << 32) | 5]
