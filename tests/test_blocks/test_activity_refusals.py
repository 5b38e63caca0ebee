"""Models and partitions that activity perturbation refuses, by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from blocks.activity import ActivityModel, ActivityNoise, check_blocks
from blocks.forward import FlatModel
from blocks.losses import cross_entropy
from blocks.models import build_model
from blocks.partition import partition


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(72, 3)
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.layer(x.flatten(1)) + self.shift


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(72, 3)

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.layer.weight)


class Merged(Silent):
    def forward(self, x):
        return self.layer(x.reshape(-1, 72)[:3]).expand(len(x), 3)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (Own(), "`shift` of Own"),
        (nn.Sequential(nn.Flatten(), Own()), r"`1\.shift` of Own"),
        (nn.LSTM(6, 3), "`weight_ih_l0` of LSTM"),
        (nn.Sequential(nn.Linear(6, 3), nn.PReLU()), r"`1\.weight` of PReLU"),
        (nn.Sequential(nn.ConvTranspose2d(2, 3, 2)), "of ConvTranspose2d"),
        (nn.Sequential(nn.Embedding(5, 3)), "of Embedding"),
        (nn.MultiheadAttention(6, 2), "of MultiheadAttention"),
        (
            nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)),
            "of BatchNorm2d without running statistics",
        ),
    ],
    ids=lambda value: value.split()[-1] if isinstance(value, str) else "",
)
def test_model__that_cannot_be_credited_is_refused_by_name(module, named):
    with pytest.raises(ValueError, match=f"`model` must hold .* got .*{named}"):
        ActivityModel(FlatModel(module), ActivityNoise(0.01, 1, "sign"))


@pytest.mark.parametrize(
    ("module", "message"),
    [(Silent(), "no call of `layer`"), (Merged(), "`layer` must be .* got 3 rows for")],
)
def test_pass__that_hides_a_layers_rows_is_refused(module, message):
    model = FlatModel(module)
    activity = ActivityModel(model, ActivityNoise(0.01, 1, "sign"))
    rng = np.random.default_rng(5)
    x = torch.tensor(rng.standard_normal((5, 2, 6, 6)), dtype=torch.float32)
    targets = torch.tensor(rng.integers(0, 3, 5))
    with pytest.raises(ValueError, match=message):
        activity.credit(model.initial_params(), x, targets, cross_entropy, (7, 3, 2))


@pytest.mark.parametrize("spec", ["by_layer", "all"])
@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_blocks__of_whole_layers_are_fine(spec, name):
    module = build_model(name, (3, 8, 8), 10)
    check_blocks(FlatModel(module), partition(spec, module))


@pytest.mark.parametrize("spec", ["by_size:3", "random:2", "by_unit:4"])
def test_blocks__that_split_a_layer_are_refused_by_its_name(spec):
    module = build_model("mlp", (1, 8, 8), 10)
    model = FlatModel(module)
    with pytest.raises(
        ValueError, match=r"keep each layer whole .* `fc1.weight` split"
    ):
        check_blocks(model.layout, partition(spec, module))
