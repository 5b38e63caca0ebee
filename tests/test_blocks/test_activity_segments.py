"""Segments of activity perturbation: where they begin, and pools as torch has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from blocks.activity_chain import cut
from blocks.activity_links import apply
from blocks.activity_segments import UNHEARD, segment_forward
from blocks.activity_tails import passed
from blocks.models import build_model


def names(modules):
    return [type(module).__name__ for module in modules]


def test_segments__begin_at_layers_with_weights():
    module = nn.Sequential(
        *(nn.Conv2d(2, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    ).eval()
    found = [names(link.module for link in segment.links) for segment in cut(module)]
    assert found == [["Conv2d", "BatchNorm2d"], ["Linear"]]
    assert len(cut(build_model("resnet8", (3, 8, 8), 10))) == 1


def test_tails__end_where_noise_would_not_come_through_unchanged():
    module = nn.Sequential(
        *(nn.Conv2d(2, 4, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(4, 3), nn.Tanh(), nn.ReLU(), nn.Linear(3, 3), nn.ReLU()),
    )
    tails = [names(link.tail) for segment in cut(module) for link in segment.links]
    assert tails == [["ReLU", "MaxPool2d", "Flatten"], [], [], [], ["ReLU"]]
    overlapping = nn.Sequential(nn.Conv2d(2, 4, 4), nn.MaxPool2d(3, stride=1))
    assert cut(overlapping)[0].links[0].tail == ()


def test_noise__is_added_to_what_a_rectifier_let_through_and_to_nothing_else():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        layer.bias.zero_()
    segment = cut(nn.Sequential(layer, nn.ReLU()))[0]
    x = torch.tensor([[2.0, -1.0], [-3.0, 4.0]])
    pairs, (call,) = segment_forward(segment, x, 1, lambda _, s: torch.full(s, 0.1))
    by = 0.1 * 3**0.25
    ahead = torch.tensor([[2.0 + by, 0.0, 0.0], [0.0, 4.0 + by, 0.0]])
    behind = torch.tensor([[2.0 - by, 0.0, 0.0], [0.0, 4.0 - by, 0.0]])
    torch.testing.assert_close(pairs, torch.cat([ahead, behind]))
    low = 0.1 * UNHEARD
    credited = torch.tensor([[[0.1, low, low], [low, 0.1, low]]])
    torch.testing.assert_close(call.noise, credited)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [(nn.MaxPool2d(2), (3, 2, 5, 7)), (nn.MaxPool2d((3, 2)), (2, 6, 4))],
    ids=str,
)
def test_pools__hand_credit_back_to_the_largest_of_a_window(pool, shape):
    rng = np.random.default_rng(5)
    x = torch.tensor(rng.standard_normal(shape), requires_grad=True)
    y = pool(x)
    delta = torch.tensor(rng.standard_normal(y.shape))
    (expected,) = torch.autograd.grad(y, x, delta)
    _, tail = passed([pool], x.detach(), lambda rows: rows)
    torch.testing.assert_close(tail.back(delta), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "pool",
    [
        *(nn.MaxPool2d(2), nn.MaxPool2d((3, 2)), nn.MaxPool2d(3, ceil_mode=True)),
        *(nn.MaxPool2d(3, stride=2), nn.MaxPool2d(2, padding=1)),
        nn.MaxPool2d(2, dilation=2),
    ],
    ids=str,
)
def test_links__pool_as_torch_does_exactly(pool):
    rng = np.random.default_rng(5)
    x = torch.tensor(rng.standard_normal((5, 2, 7, 8)))
    x[0, 0, 2, 3] = float("nan")
    found = apply(pool, x, own=False)
    torch.testing.assert_close(found, pool(x), rtol=0, atol=0, equal_nan=True)
