"""Joint probes' losses: the same in every form, and no graph behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from blocks.algorithm import Message
from blocks.batched import best_probe_form
from blocks.forward import FlatModel
from blocks.joint_probes import draw_probes, matrices_of
from blocks.losses import cross_entropy, squared
from blocks.models import build_model
from blocks.open_es import OpenES
from blocks.partition import partition, split
from blocks.probe_losses import probe_losses

SPECS = ["all", "by_layer", "by_unit:5", "by_size:4", "random:3:1"]


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return build()


MODULES = {
    "mlp": seeded(lambda: build_model("mlp", (1, 4, 5), 3, seed=1, hidden=(16,))),
    "deep": seeded(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Tanh(),
            nn.Linear(20, 12, bias=False),
            nn.Tanh(),
            nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(9, 3, bias=False),
            nn.Identity(),
        )
    ),
    "linear": seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 3))),
    "conv": seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        )
    ),
}


def probes_of(module, spec, rank, n_probes=12, kind="sign"):
    algorithm = OpenES(population_size=n_probes, probe_kind=kind, rank=rank)
    model, blocks = FlatModel(module), partition(spec, module)
    messages = {
        i: Message(part, probe_std=0.02 * (1 + i))
        for i, part in enumerate(split(model.initial_params(), blocks))
    }
    steps = [3 + i for i in range(len(blocks))]
    matrices = matrices_of(algorithm, blocks, model.layout)
    drawn = draw_probes(algorithm, 5, messages, steps, blocks, matrices, model.n_params)
    return model, drawn


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(8)
    x = torch.tensor(rng.standard_normal((37, 1, 4, 5)), dtype=torch.float32)
    return x, torch.tensor(rng.integers(0, 3, 37))


def losses_of(model, probes, batch, form, loss=cross_entropy, dtype=torch.float32):
    found = torch.empty(2 * probes.n_pairs, dtype=torch.float64)
    for first, function in probe_losses(model, probes, loss, form, dtype=dtype):
        part = function(*batch)
        found[first : first + len(part)] = part
    return found


def expected_losses(model, probes, batch, loss=cross_entropy):
    x, targets = batch
    return torch.stack(
        [
            loss(model.forward(point, x), targets).double().sum()
            for point in probes.points()
        ]
    )


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["mlp", "deep"])
def test_pairs__are_the_losses_of_the_points_written_out(name, spec, rank, batch):
    model, probes = probes_of(MODULES[name], spec, rank)
    got = losses_of(model, probes, batch, "pairs")
    expected = expected_losses(model, probes, batch)
    # float32 rounding of 37 losses of about 1 each
    torch.testing.assert_close(got, expected, rtol=0, atol=37 * 2e-6)
    assert float(expected.std()) > 1e-2  # the probes do differ


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("form", ["loop", "vmap", "bmm", "auto"])
def test_forms__agree(form, rank, batch):
    model, probes = probes_of(MODULES["mlp"], "by_layer", rank, kind="gaussian")
    got = losses_of(model, probes, batch, form)
    expected = losses_of(model, probes, batch, "pairs")
    torch.testing.assert_close(got, expected, rtol=0, atol=37 * 2e-6)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_auto__scores_any_module(name, rank, batch):
    model, probes = probes_of(MODULES[name], "all", rank)
    got = losses_of(model, probes, batch, "auto")
    torch.testing.assert_close(
        got, expected_losses(model, probes, batch), rtol=0, atol=37 * 2e-6
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_pairs__take_any_loss(rank, batch):
    model, probes = probes_of(MODULES["mlp"], "by_layer", rank)
    got = losses_of(model, probes, batch, "pairs", squared)
    expected = expected_losses(model, probes, batch, squared)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("form", ["pairs", "loop"])
def test_losses__of_more_probes_than_fit_at_once_keep_their_order(form, rank, rng):
    x = torch.tensor(rng.standard_normal((96, 1, 4, 5)), dtype=torch.float32)
    batch = x, torch.tensor(rng.integers(0, 3, 96))
    # 65,536 / (16 units · 96 samples) is 42 pairs at a time; the loop takes 32.
    model, probes = probes_of(MODULES["mlp"], "all", rank, n_probes=2 * 50)
    got = losses_of(model, probes, batch, form)
    torch.testing.assert_close(
        got, expected_losses(model, probes, batch), rtol=0, atol=96 * 2e-6
    )


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("form", ["pairs", "loop", "bmm"])
def test_losses__are_the_same_bits_again_wherever_the_inputs_lie(form, rank, batch):
    x, targets = batch
    raw = torch.empty(x.numel() + 1)
    moved = raw[1:].view_as(x).copy_(x)
    model, probes = probes_of(MODULES["mlp"], "by_size:4", rank)
    first = losses_of(model, probes, batch, form)
    again, rebuilt = probes_of(MODULES["mlp"], "by_size:4", rank)
    assert torch.equal(losses_of(again, rebuilt, (moved, targets), form), first)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_losses__build_no_graph(name, rank, batch):
    def refuse(_):
        raise AssertionError("a graph was built")

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        model, probes = probes_of(MODULES[name], "all", rank)
        losses = losses_of(model, probes, batch, "auto")
    assert not losses.requires_grad


def test_zero_std__gives_every_probe_the_loss_of_the_centre(batch):
    model, probes = probes_of(MODULES["mlp"], "all", 1)
    still = type(probes)(
        probes.blocks, probes.centres, (0.0,), probes.directions, probes.n_params
    )
    got = losses_of(model, still, batch, "pairs")
    centre = expected_losses(model, still, batch)[0]
    torch.testing.assert_close(got, centre.expand(12), rtol=0, atol=37 * 2e-6)


@pytest.mark.parametrize(
    ("name", "n_probes", "form"),
    [("mlp", 2, "pairs"), ("mlp", 1, "loop"), ("conv", 256, "loop")],
)
def test_best_probe_form__follows_the_table(name, n_probes, form):
    assert best_probe_form(MODULES[name], "cpu", n_probes) == form


def test_form__that_does_not_suit_is_refused(batch):
    model, probes = probes_of(MODULES["conv"], "all", 1)
    with pytest.raises(ValueError, match='`form` = "pairs" must be given a sequence'):
        losses_of(model, probes, batch, "pairs")
    perceptron = FlatModel(MODULES["mlp"])
    with pytest.raises(ValueError, match='`form` must not be "pairs"'):
        perceptron.logits_many(perceptron.initial_params()[None], batch[0], "pairs")


def test_probes__without_blocks_are_refused():
    with pytest.raises(ValueError, match="`n_probes` must be 1 for a method without"):
        draw_probes(OpenES(), 0, {}, [], [], [], 3)


def test_loop__of_a_chain_with_pooling_has_the_bits_of_the_module(rng):
    module = build_model("lenet", (1, 13, 14), 3, seed=2)
    x = torch.tensor(rng.standard_normal((130, 1, 13, 14)), dtype=torch.float32)
    model = FlatModel(module)
    with torch.no_grad():
        expected = torch.cat([module(x[:100]), module(x[100:])])
    assert torch.equal(model.forward(model.initial_params(), x), expected)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("form", ["pairs", "loop", "vmap", "bmm"])
def test_bfloat16__rounds_products_and_keeps_what_tells_probes_apart(form, rank, batch):
    model, probes = probes_of(MODULES["mlp"], "by_layer", rank, n_probes=64)
    before = model.initial_params().clone()
    exact = losses_of(model, probes, batch, form)
    got = losses_of(model, probes, batch, form, dtype=torch.bfloat16)
    assert got.dtype == torch.float64
    assert not torch.equal(got, exact)
    torch.testing.assert_close(got, exact, rtol=0.02, atol=0)
    wanted, found = (loss[0::2] - loss[1::2] for loss in (exact, got))
    assert float(torch.corrcoef(torch.stack([wanted, found]))[0, 1]) > 0.95
    again = losses_of(model, probes, batch, form, dtype=torch.bfloat16)
    assert torch.equal(again, got)
    assert torch.equal(model.initial_params(), before)
