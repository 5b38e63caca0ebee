"""Direct feedback: where a chain is cut, and what each segment makes of the error."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from blocks.feedback import GaussianFeedback, direct_feedback, segments
from blocks.forward import FlatModel
from blocks.losses import cross_entropy
from blocks.models import build_model

SHAPE = (1, 8, 8)


def samples(rng, n=6, n_classes=3):
    inputs = torch.tensor(rng.standard_normal((n, *SHAPE)), dtype=torch.float32)
    return inputs, torch.tensor(rng.integers(0, n_classes, n))


def seeded(*layers):
    """Layers in sequence with weights of a seed."""
    module = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def both(module, data, feedback=None):
    """Answers of direct feedback and of back-propagation, at the module's values."""
    model = FlatModel(module)
    params = model.initial_params()
    feedback = feedback or GaussianFeedback(7)
    local = direct_feedback(model, params, *data, cross_entropy, feedback)
    return local, model.gradient(params, *data, cross_entropy)


def net(*sizes, activation=nn.Tanh):
    layers = [nn.Flatten()]
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return seeded(*layers[:-1])


# -- limits -------------------------------------------------------------------------


def test_one_layer__is_the_true_gradient_exactly(rng):
    local, true = both(net(64, 3), samples(rng))
    assert local[0] == true[0]
    assert torch.equal(local[1], true[1])


def test_two_linear_layers__with_the_weights_as_feedback_are_back_propagation(rng):
    module = net(64, 5, 3, activation=nn.Identity)
    weights = module[3].weight.detach()  # (3, 5)
    local, true = both(module, samples(rng), lambda n_classes, width: weights)
    torch.testing.assert_close(local[1], true[1], rtol=1e-5, atol=1e-7)


def test_last_layer__has_its_true_gradient_exactly_at_any_depth(rng):
    local, true = both(net(64, 7, 5, 3), samples(rng))
    n_last = 5 * 3 + 3
    assert torch.equal(local[1][-n_last:], true[1][-n_last:])
    assert not torch.allclose(local[1][:-n_last], true[1][:-n_last])


def test_hidden_layer__by_hand(rng):
    module, (x, y) = net(64, 5, 3), samples(rng)
    feedback = GaussianFeedback(7)
    local, _ = both(module, (x, y))
    hidden = torch.tanh(module[1](x.flatten(1)))
    error = module[3](hidden).softmax(1) - nn.functional.one_hot(y, 3)
    delta = (error @ feedback(3, 5)) * (1 - hidden**2) / len(y)  # (n, 5)
    expected = torch.cat([(delta.T @ x.flatten(1)).flatten(), delta.sum(0)])
    torch.testing.assert_close(local[1][: 64 * 5 + 5], expected, rtol=1e-4, atol=1e-6)


# -- locality -----------------------------------------------------------------------


def test_no_gradient__crosses_a_segment(rng):
    """With no feedback at all, every layer but the last learns nothing, exactly."""
    local, true = both(net(64, 7, 5, 3), samples(rng), torch.zeros)
    n_last = 5 * 3 + 3
    assert not local[1][:-n_last].any()
    assert local[1][-n_last:].all()
    assert true[1][:-n_last].any()


def test_input_of_a_segment__never_needs_a_gradient(rng):
    module, seen = net(64, 7, 5, 3), []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(x.requires_grad)
            return super().forward(x)

    for linear in [m for m in module if isinstance(m, nn.Linear)]:
        linear.__class__ = Watched
    both(module, samples(rng))
    assert seen[:3] == [False, False, False]  # direct feedback
    assert seen[3:] == [False, True, True]  # back-propagation


@pytest.mark.parametrize("name", ["lenet", "cifar_cnn"])
def test_convolutions__only_the_weights_above_are_not_used(name, rng):
    """A layer's answer does not depend on what the layers above do with it."""
    data = samples(rng)
    module = build_model(name, SHAPE, 3)
    model = FlatModel(module)
    params = model.initial_params()
    sizes = []

    def feedback(n_classes, width):
        sizes.append(width)
        return GaussianFeedback(7)(n_classes, width)

    _, local, _ = direct_feedback(model, params, *data, cross_entropy, feedback)
    chain = segments(module)
    assert len(chain) == 5
    x, widths = data[0], []
    for segment in chain:
        x = segment(x)
        widths.append(x[0].numel())
    assert sizes == widths[:-1]
    assert local.isfinite().all()
    assert all(local[s.start : s.stop].any() for s in model.layout.segments)
    n_last = sum(p.numel() for p in chain[-1].parameters())
    true = model.gradient(params, *data, cross_entropy)[1]
    assert torch.equal(local[-n_last:], true[-n_last:])


# -- the chain ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("mlp", [3, 1]),  # flatten, layer, activation | layer
        ("lenet", [3, 4, 2, 2, 1]),
        ("cifar_cnn", [3, 3, 4, 2, 1]),
    ],
)
def test_segment__is_a_layer_and_what_follows_it(name, lengths):
    module = build_model(name, SHAPE, 3)
    chain = segments(module)
    assert [len(segment) for segment in chain] == lengths
    joined = [layer for segment in chain for layer in segment]
    assert all(a is b for a, b in zip(joined, module, strict=True))


def test_normalisation__belongs_to_the_layer_before_it_and_keeps_its_statistics(rng):
    inner = nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True))
    module = seeded(nn.Flatten(), inner, nn.Linear(6, 3))
    chain = segments(module)
    assert [len(segment) for segment in chain] == [4, 1]
    local, true = both(module, samples(rng))
    assert local[1][64 * 6 + 6 : 64 * 6 + 18].any()  # scale and shift
    assert torch.equal(local[2], true[2])


def test_dropout__is_that_of_the_seed(rng):
    module = seeded(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(0.5), nn.Linear(9, 3))
    model, data = FlatModel(module), samples(rng)
    params = model.initial_params()

    def answer(seed):
        return direct_feedback(
            model, params, *data, cross_entropy, GaussianFeedback(7), seed=seed
        )[1]

    assert torch.equal(answer(1), answer(1))
    assert not torch.equal(answer(1), answer(2))
    assert model.forward(params, data[0]).equal(model.forward(params, data[0]))


def test_frozen_layer__is_passed_through_and_not_learned(rng):
    module = net(64, 7, 5, 3)
    module[1].requires_grad_(False)
    local, true = both(module, samples(rng))
    assert len(local[1]) == len(true[1]) == 7 * 5 + 5 + 5 * 3 + 3
    assert [len(segment) for segment in segments(module)] == [5, 1]


class Own(nn.Module):
    """Two layers, called in a way that only ``forward`` knows."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.two(self.one(x.flatten(1)))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (build_model("resnet8", SHAPE, 3), "_ResNet8 with 10 weight arrays"),
        (Own(), "Own with 2 weight arrays"),
        (nn.Sequential(nn.Flatten(), nn.Sequential(Own())), "at `1.0`"),
        (nn.Sequential(nn.GRU(64, 3)), "GRU with 2 weight arrays at `0`"),
    ],
    ids=["resnet8", "own", "nested", "gru"],
)
def test_what_is_no_chain__is_refused_with_its_name(module, said):
    with pytest.raises(ValueError, match=rf"must be a chain .*{said}.*Build it of"):
        segments(module)


def test_layer_used_twice__is_refused():
    twice = nn.Linear(64, 64)
    with pytest.raises(ValueError, match=r"`1.weight` of segment 1 again|segment 1"):
        segments(nn.Sequential(nn.Flatten(), twice, nn.Tanh(), twice))


# -- the matrix ---------------------------------------------------------------------


def test_feedback__narrow_layers_take_a_slice_of_the_wide_ones_matrix():
    feedback = GaussianFeedback(7)
    wide, narrow = feedback(3, 50), feedback(3, 20)
    assert wide.shape == (3, 50)
    torch.testing.assert_close(wide[:, :20] * (50 / 20) ** 0.5, narrow)
    assert torch.equal(narrow, GaussianFeedback(7)(3, 20))
    assert not torch.equal(narrow, GaussianFeedback(8)(3, 20))


def test_feedback__has_a_norm_of_about_one_at_any_width():
    for width in (100, 10_000):
        # Relative standard deviation of the norm: 1/√(2 · 10 · width) < 0.03.
        assert float(GaussianFeedback(7)(10, width).norm()) == pytest.approx(1, abs=0.1)


def test_feedback__cannot_be_changed_by_who_was_given_it():
    GaussianFeedback(7)(3, 20).zero_()
    assert GaussianFeedback(7)(3, 20).any()
