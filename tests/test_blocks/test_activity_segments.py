"""Segments of activity perturbation: where they begin, and pools as torch has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from blocks.activity_links import apply
from blocks.activity_segments import cut
from blocks.models import build_model


def test_segments__begin_at_layers_with_weights():
    module = nn.Sequential(
        *(nn.Conv2d(2, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    ).eval()
    sizes = [[type(link.module).__name__ for link in s.links] for s in cut(module)]
    assert sizes == [
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Flatten"],
        ["Linear"],
    ]
    assert len(cut(build_model("resnet8", (3, 8, 8), 10))) == 1


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
