"""Claims of `blocks.losses` and of `blocks.dotted`."""

import math
import sys
import types

import pytest
import torch

from blocks.losses import LOSSES, per_sample_loss

LOGITS = torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5]])
TARGETS = torch.tensor([1, 0])


@pytest.fixture
def own_module(monkeypatch):
    module = types.ModuleType("own_losses_for_test")
    module.absolute = lambda logits, targets: (
        logits.gather(1, targets[:, None])[:, 0].abs().double()
    )
    module.mean = lambda logits, targets: logits.mean()
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_losses_for_test", module)
    return module


def test_cross_entropy__matches_hand_calculation():
    losses = per_sample_loss("cross-entropy")(LOGITS, TARGETS)
    second = math.log(math.exp(2) + math.exp(-1) + math.exp(0.5)) - 2
    assert losses.tolist() == pytest.approx([math.log(3), second], rel=1e-6)


def test_squared__matches_hand_calculation():
    losses = per_sample_loss("squared")(LOGITS, TARGETS)
    assert losses.tolist() == pytest.approx([1.0, 1.0 + 1.0 + 0.25], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses__are_float32_per_sample_and_independent_of_the_batch(name):
    loss = per_sample_loss(name)
    both = loss(LOGITS, TARGETS)
    assert both.dtype == torch.float32
    assert torch.equal(both[1:], loss(LOGITS[1:], TARGETS[1:]))


@pytest.mark.parametrize("name", LOSSES)
def test_losses__are_differentiable(name):
    logits = LOGITS.clone().requires_grad_()
    per_sample_loss(name)(logits, TARGETS).sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_per_sample_loss__takes_the_users_own_function(own_module):
    losses = per_sample_loss("own_losses_for_test:absolute")(LOGITS, TARGETS)
    assert losses.dtype == torch.float32
    assert losses.tolist() == [0.0, 2.0]


def test_per_sample_loss__refuses_a_users_mean(own_module):
    with pytest.raises(ValueError, match="one number a sample"):
        per_sample_loss("own_losses_for_test:mean")(LOGITS, TARGETS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hinge", '"cross-entropy", "squared"'),
        ("no_such_package_here:f", "ModuleNotFoundError"),
        ("own_losses_for_test:absent", "has no `absent`"),
        ("own_losses_for_test:number", "callable"),
        (":f", "package.module:name"),
        ("a:b:c", "package.module:name"),
    ],
)
def test_per_sample_loss__bad_names_say_what_to_do(own_module, name, message):
    with pytest.raises(ValueError, match=message):
        per_sample_loss(name)
