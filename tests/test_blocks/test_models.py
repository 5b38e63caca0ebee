"""Claims of `blocks.models` and `blocks.networks`."""

import sys
import types

import pytest
import torch
from torch import nn

from blocks.models import MODELS, build_model

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 17), (2, 16, 11), (1, 15, 40)]


@pytest.fixture
def own_module(monkeypatch):
    module = types.ModuleType("own_models_for_test")

    def linear(image_shape, n_classes, bias=True):
        n_in = image_shape[0] * image_shape[1] * image_shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_classes, bias=bias))

    module.linear = linear
    module.wrong_output = lambda image_shape, n_classes: nn.Flatten()
    module.no_module = lambda image_shape, n_classes: 3
    module.no_classes = lambda image_shape: nn.Flatten()
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_models_for_test", module)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_models__map_any_image_of_8_pixels_or_more_to_logits(name, shape):
    module = build_model(name, shape, 7, seed=1)
    with torch.no_grad():
        logits = module(torch.rand(3, *shape))
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())
    assert not module.training


@pytest.mark.parametrize(
    ("name", "shape", "n_params"),
    [
        ("mlp", (1, 28, 28), 25_450),
        ("lenet", (1, 28, 28), 61_706),
        ("cifar_cnn", (3, 32, 32), 122_570),
        ("resnet8", (3, 32, 32), 77_850),
    ],
)
def test_models__have_the_documented_sizes(name, shape, n_params):
    module = build_model(name, shape, 10)
    assert sum(p.numel() for p in module.parameters()) == n_params
    assert f"{n_params:,}" in MODELS[name].__doc__


@pytest.mark.parametrize("name", MODELS)
def test_build_model__is_a_function_of_the_seed_and_leaves_the_generator_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_model(name, (1, 8, 8), 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build_model(name, (1, 8, 8), 10, seed=3)
    other = build_model(name, (1, 8, 8), 10, seed=4)
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_mlp__takes_sizes_and_activation():
    module = build_model("mlp", (1, 8, 8), 10, hidden=[16, 9], activation="tanh")
    assert [type(part).__name__ for part in module] == [
        "Flatten",
        "Linear",
        "Tanh",
        "Linear",
        "Tanh",
        "Linear",
    ]
    assert [p.shape[0] for p in module.parameters()] == [16, 16, 9, 9, 10, 10]
    assert len(build_model("mlp", (1, 8, 8), 10, hidden=())) == 2
    assert build_model("mlp", (1, 8, 8), 10, hidden=5).fc1.out_features == 5


def test_resnet8__group_norm_has_no_buffers_and_batch_norm_has():
    group = build_model("resnet8", (1, 8, 8), 10)
    batch = build_model("resnet8", (1, 8, 8), 10, norm="batch")
    assert not list(group.buffers())
    assert len(list(batch.buffers())) == 7 * 3


def test_build_model__takes_the_users_own_factory(own_module):
    module = build_model("own_models_for_test:linear", (1, 2, 3), 4, bias=False)
    assert [tuple(p.shape) for p in module.parameters()] == [(4, 6)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, '"mlp", "lenet", "cifar_cnn", "resnet8"'),
        (
            "mlp",
            {"hidden_sizes": 3},
            r"options among \['hidden', 'activation'\].*'hidden_sizes'",
        ),
        ("mlp", {"activation": "step"}, "relu, tanh"),
        ("mlp", {"hidden": [4, 0]}, "positive layer sizes"),
        ("lenet", {"norm": "batch"}, "options among"),
        ("resnet8", {"norm": "layer"}, '"group" or "batch"'),
        ("no_such_package_here:f", {}, "ModuleNotFoundError"),
        ("own_models_for_test:absent", {}, "has no `absent`"),
        ("own_models_for_test:number", {}, "callable"),
        ("own_models_for_test:no_module", {}, "torch.nn.Module; got int"),
        ("own_models_for_test:no_classes", {}, "callable with `image_shape`"),
        ("own_models_for_test:wrong_output", {}, r"shape \(2, 10\); got \(2, 64\)"),
    ],
)
def test_build_model__bad_names_and_options_say_what_to_do(
    own_module, name, options, message
):
    with pytest.raises(ValueError, match=message):
        build_model(name, (1, 8, 8), 10, **options)


@pytest.mark.parametrize("name", ["lenet", "cifar_cnn", "resnet8"])
def test_build_model__images_too_small_are_refused(name):
    with pytest.raises(ValueError, match="at least 8 × 8 pixels; got 7 × 9"):
        build_model(name, (1, 7, 9), 10)


@pytest.mark.parametrize("shape", [(8, 8), (1, 0, 8)])
def test_build_model__bad_shapes_and_class_counts_are_refused(shape):
    with pytest.raises(ValueError, match="channels, height, width"):
        build_model("mlp", shape, 10)
    with pytest.raises(ValueError, match="at least 2; got 1"):
        build_model("mlp", (1, 8, 8), 1)
