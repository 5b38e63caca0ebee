"""The noise of activity perturbation: one stream a key, part and place."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from blocks.activity import ActivityNoise
from blocks.activity_noise import noise_scale

KEY = (7, 3, 2)


def test_noise__differs_with_key_part_and_place():
    noise = ActivityNoise(0.5, 1, "gaussian")
    keys = [KEY, (8, 3, 2), (7, 4, 2), (7, 3, 3)]
    drawn = [
        noise.source(key, part)(place, (1, 6, 4))
        for key in keys
        for part in (0, 1)
        for place in (0, 1, 1 << 32)
    ]
    for one, other in itertools.combinations(drawn, 2):
        assert float((one - other).abs().max()) > 0.1
    again = noise.source(KEY, 1)(1 << 32, (1, 6, 4))
    assert torch.equal(again, drawn[5])


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
def test_noise__has_the_spread_that_is_set(kind):
    values = ActivityNoise(0.25, 3, kind).source(KEY)(0, (3, 1000, 7)).double()
    n = values.numel()
    assert abs(float(values.mean())) <= 4 * 0.25 / math.sqrt(n)
    assert float(values.square().mean().sqrt()) == pytest.approx(0.25, rel=0.03)
    assert (len(values.abs().unique()) == 1) is (kind == "sign")


def test_noise__of_a_layer_grows_with_the_fourth_root_of_its_units():
    assert noise_scale((3, 100, 16)) == 2.0
    assert noise_scale((1, 7, 9, 3, 3)) == 3.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("std", 0.0), ("std", math.inf), ("draws", 0), ("kind", "uniform")],
)
def test_noise__out_of_range_is_refused_by_name(name, value):
    settings = {"std": 0.01, "draws": 1, "kind": "sign", name: value}
    with pytest.raises(ValueError, match=f"`{name}` of the noise must be .*{value}"):
        ActivityNoise(**settings)
