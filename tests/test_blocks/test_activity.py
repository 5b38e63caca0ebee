"""Activity perturbation: its estimate against autograd's gradient, layer by layer."""

from __future__ import annotations

import copy
import gzip
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from blocks.activity import ActivityModel, ActivityNoise
from blocks.activity_chain import cut
from blocks.activity_segments import perturbed_pass
from blocks.forward import FlatModel
from blocks.losses import cross_entropy
from blocks.models import build_model
from pipeline.standardise import Standardise, standardisation

KEY = (7, 3, 2)
SHAPE = (2, 6, 6)


def seeded(*layers):
    """Layers in sequence, in float64 and evaluation mode, with weights of a seed."""
    module = copy.deepcopy(nn.Sequential(*layers)).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.4 * noise + (parameter.dim() == 1))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.copy_(torch.linspace(-0.3, 0.4, part.num_features))
                part.running_var.copy_(torch.linspace(0.5, 2.0, part.num_features))
    return module


def samples(n=5, shape=SHAPE, n_classes=3, dtype=torch.float64):
    rng = np.random.default_rng(5)
    inputs = torch.tensor(rng.standard_normal((n, *shape)), dtype=dtype)
    return inputs, torch.tensor(rng.integers(0, n_classes, n))


def gradient(module, x, targets):
    """Σ over the samples of autograd's gradients, flat."""
    with torch.enable_grad():
        loss = cross_entropy(module(x), targets).sum()
        trained = [p for p in module.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, trained)
    return torch.cat([g.flatten() for g in found])


class OneAtATime:
    """The complete design: draw i moves the i-th of all n noisy units, by σ√n.

    A design of no units moves nothing, and counts them.
    """

    def __init__(self, n_units=0, std=0.0):
        self.n_units, self.by = n_units, std * math.sqrt(n_units)
        self.first, self.n_seen = {}, 0

    def __call__(self, place, shape):
        draws, n, *unit = shape
        size = math.prod(unit)
        if place not in self.first:
            self.first[place] = self.n_seen
            self.n_seen += size
        noise = torch.zeros((draws, n, size), dtype=torch.float64)
        if self.n_units:
            units = torch.arange(size)
            noise[self.first[place] + units, :, units] = self.by
        return noise.view(shape)


def over_complete_design(module, x, targets):
    """Estimates of all parameters, flat; each unit moves by 1e-4."""
    segments, count = cut(module), OneAtATime()
    sums = [{} for _ in segments]
    perturbed_pass(segments, x, targets, cross_entropy, 1, 1.0, count, sums)
    n_units = count.n_seen
    std = 1e-4 / math.sqrt(n_units)
    source = OneAtATime(n_units, std)
    sums = [{} for _ in segments]
    perturbed_pass(segments, x, targets, cross_entropy, n_units, std, source, sums)
    total = {}
    for own in sums:
        for key, value in own.items():
            total[key] = total.get(key, 0.0) + value
    return torch.cat([total[id(p)].flatten() for p in module.parameters()])


class Twice(nn.Module):
    """One layer called twice, with a path that only ``forward`` knows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        return x + torch.tanh(self.layer(torch.tanh(self.layer(self.norm(x)))))


FLAT = (nn.Flatten(), nn.Linear(72, 3))
TIED = nn.Linear(4, 4)
NETWORKS = {
    "dense": (nn.Flatten(), nn.Linear(72, 4), nn.Tanh(), nn.Linear(4, 3)),
    "no-bias": (nn.Flatten(), nn.Linear(72, 3, bias=False)),
    "on-columns": (nn.Linear(6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
    "conv": (nn.Conv2d(2, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)),
    "stride-padding": (
        *(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GELU()),
        *(nn.Flatten(), nn.Linear(36, 3)),
    ),
    "dilation-groups": (
        *(nn.Conv2d(2, 2, 2, dilation=2, groups=2), nn.Conv2d(2, 2, (1, 2))),
        *(nn.Flatten(), nn.Linear(24, 3)),
    ),
    "same-even": (nn.Conv2d(2, 2, 2, padding="same"), *FLAT),
    "valid": (nn.Conv2d(2, 2, 5, padding="valid"), nn.Flatten(), nn.Linear(8, 3)),
    "circular": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), *FLAT),
    "reflect-same": (
        nn.Conv2d(2, 2, 3, padding="same", padding_mode="reflect"),
        *FLAT,
    ),
    "one-dimension": (
        *(nn.Flatten(2), nn.Conv1d(2, 2, 3, padding=1), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(72, 3)),
    ),
    "group-norm": (
        nn.Conv2d(2, 4, 4),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(36, 3),
    ),
    "layer-norm": (nn.LayerNorm([6, 6]), nn.Tanh(), *FLAT),
    "batch-norm": (
        *(nn.Conv2d(2, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    ),
    "pool-relu": (
        *(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(3, 4, 2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
    ),
    "pool-rows": (
        *(nn.Linear(6, 5), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d((2, 3))),
        *(nn.Flatten(), nn.Linear(6, 3)),
    ),
    "called-twice": (nn.Flatten(), nn.Linear(72, 6), Twice(), nn.Linear(6, 3)),
    "graph-first": (Twice(), *FLAT),
    "tied": (nn.Flatten(), nn.Linear(72, 4), TIED, nn.Tanh(), TIED, nn.Linear(4, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", NETWORKS)
def test_estimate__over_a_complete_design_is_the_gradient(name):
    module, data = seeded(*NETWORKS[name]), samples()
    found, true = over_complete_design(module, *data), gradient(module, *data)
    assert float((found - true).norm()) <= 1e-6 * float(true.norm())


def test_estimate__leaves_out_what_is_frozen():
    module, data = seeded(*NETWORKS["conv"]), samples()
    module[0].weight.requires_grad_(False)
    module[3].bias.requires_grad_(False)
    segments = cut(module)
    sums = [{} for _ in segments]
    source = ActivityNoise(0.01, 1, "sign").source(KEY)
    perturbed_pass(
        segments,
        *data,
        cross_entropy,
        1,
        0.01,
        lambda p, s: source(p, s).double(),
        sums,
    )
    assert {key for own in sums for key in own} == {
        id(module[0].bias),
        id(module[3].weight),
    }


# -- ties: flat background makes the numbers of a window equal, exactly ---------------

CENTRINGS = ["pixel", "channel"]
STRIDES = [(0, 1), (1, 1), (2, 1), ("same", 1), (0, 2), (1, 2), (2, 2)]
POOLS = [2, 3, (3, 2), (1, 2)]


def standardised(pixels, targets, centring, n):
    """The first images as a run would give them to a network, in float64."""
    pixels = pixels.float()
    moments = (float(pixels.mean()),), (float(pixels.std()),)
    standard = standardisation(pixels, *moments, 1.0, centring)
    return Standardise(standard)(pixels[:n]).double(), targets[:n]


def digits(centring, n=2):
    """Real digits in a corner of 13 × 13 pixels: a background as photographs have."""
    found = load_digits()
    pixels = functional.pad(torch.tensor(found.images)[:, None], (5, 0, 5, 0))
    return standardised(pixels / 16, torch.tensor(found.target), centring, n)


def n_tied(pool, module, x):
    """Windows whose largest number is positive and there more than once."""
    seen = []
    handle = pool.register_forward_hook(lambda _, given, y: seen.append((*given, y)))
    module(x)
    handle.remove()
    (before, after), size = seen[0], pool.kernel_size
    high, wide = (size, size) if isinstance(size, int) else size
    windows = before.unfold(2, high, high).unfold(3, wide, wide).flatten(4)
    largest = (windows == after[..., None]).sum(-1)
    return int(((largest > 1) & (after > 0)).sum())


def check_ties(module, x, targets, skipped=0):
    """The estimate is the gradient, behind the first ``skipped`` parameters."""
    pools = [part for part in module if isinstance(part, nn.MaxPool2d)]
    assert n_tied(pools[-1], module, x) > 0
    found, true = over_complete_design(module, x, targets), gradient(module, x, targets)
    off = (found - true)[skipped:]
    assert float(off.norm()) <= 1e-6 * float(true[skipped:].norm())


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize(("padding", "stride"), STRIDES)
def test_ties__of_a_convolution_on_real_images_do_not_bias(
    padding, stride, pool, centring
):
    conv = nn.Conv2d(1, 3, 3, stride, padding)
    tail = nn.ReLU(), nn.MaxPool2d(pool), nn.Flatten()
    n_units = nn.Sequential(conv, *tail)(torch.zeros(1, 1, 13, 13)).numel()
    check_ties(seeded(conv, *tail, nn.Linear(n_units, 10)), *digits(centring))


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize(
    "tail",
    [
        (nn.Linear(13, 6), nn.ReLU(), nn.MaxPool2d((2, 1))),
        (nn.Linear(13, 6), nn.MaxPool2d((2, 1)), nn.ReLU()),
        (nn.Conv2d(1, 4, 1), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d((2, 3))),
    ],
    ids=["dense-relu-pool", "dense-pool-relu", "two-pools"],
)
def test_ties__in_any_tail_do_not_bias(tail, centring):
    n_units = nn.Sequential(*tail)(torch.zeros(1, 1, 13, 13)).numel()
    module = seeded(*tail, nn.Flatten(), nn.Linear(n_units, 10))
    check_ties(module, *digits(centring))


@pytest.mark.parametrize("centring", CENTRINGS)
def test_ties__of_a_later_convolution_do_not_bias(centring):
    first = nn.Conv2d(1, 2, 3, padding=1)
    module = seeded(
        *(first, nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(75, 10)),
    )
    # One unit that moves alone breaks the ties behind it: of the first layer, they
    # are right on average over joint noise only (below).
    check_ties(module, *digits(centring), skipped=20)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_ties__of_lenet_on_mnist_do_not_bias(centring, shared_datasets):
    folder = shared_datasets / "mnist"

    def read(name, offset):
        raw = gzip.decompress(next(folder.glob(f"{name}*")).read_bytes())
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=offset)

    pixels = read("train-images", 16).view(-1, 1, 28, 28)[:2000] / 255
    targets = read("train-labels", 8).long()
    lenet = list(build_model("lenet", (1, 28, 28), 10))
    module = seeded(*lenet[:3], nn.Flatten(), nn.Linear(1176, 10))
    check_ties(module, *standardised(pixels, targets, centring, 2))


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
@pytest.mark.parametrize("centring", CENTRINGS)
def test_ties__do_not_bias_random_draws(centring, kind):
    layers = (
        *(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(12, 10)),
    )
    x, targets = digits(centring)
    module = seeded(*layers)
    assert n_tied(module[2], module, x) > 0
    check_draws(layers, x, targets, kind)


# -- random draws -------------------------------------------------------------------


def float32(*layers):
    return FlatModel(seeded(*layers).float())


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
@pytest.mark.parametrize("name", ["dense", "conv", "group-norm", "pool-relu"])
def test_estimate__of_random_draws_is_unbiased(name, kind):
    check_draws(NETWORKS[name], *samples(), kind)


def check_draws(layers, x, targets, kind):
    """The mean of estimates is within four standard errors, in nine directions."""
    model = float32(*layers)
    params = model.initial_params()
    true = gradient(seeded(*layers), x, targets)
    x = x.float()
    activity = ActivityModel(model, ActivityNoise(0.01, 2, kind))
    estimates = torch.stack(
        [
            activity.credit(params, x, targets, cross_entropy, (1, k, 0))[1].double()
            for k in range(600)
        ]
    )
    rng = np.random.default_rng(8)
    directions = torch.tensor(rng.standard_normal((9, len(true))))
    directions[0] = true
    directions /= directions.norm(dim=1, keepdim=True)
    off = (estimates - true) @ directions.T  # (600, 9)
    standard_error = off.std(dim=0) / math.sqrt(len(off))
    assert bool((off.mean(dim=0).abs() <= 4 * standard_error).all())
    assert float(standard_error[0]) < 0.2 * float(true.norm())


def test_losses__are_those_of_the_pairs_in_order():
    model = float32(nn.Flatten(), nn.Linear(72, 3))
    x, targets = samples(dtype=torch.float32)
    noise = ActivityNoise(0.5, 2, "gaussian")
    activity = ActivityModel(model, noise)
    losses, _ = activity.credit(model.initial_params(), x, targets, cross_entropy, KEY)
    logits = model.forward(model.initial_params(), x)
    added = 3**0.25 * noise.source(KEY)(0, (2, 5, 3))  # three noisy units
    for row, moved in enumerate((added[0], -added[0], added[1], -added[1])):
        expected = cross_entropy(logits + moved, targets)
        torch.testing.assert_close(losses[row], expected, rtol=1e-5, atol=1e-6)


# -- purity -------------------------------------------------------------------------

BUILT = [
    *(("mlp", (1, 28, 28), 1500), ("lenet", (1, 16, 16), 120)),
    *(("cifar_cnn", (3, 8, 8), 120), ("resnet8", (3, 8, 8), 60)),
]


def built(name, shape, n):
    model = FlatModel(build_model(name, shape, 10, seed=4))
    rng = np.random.default_rng(6)
    x = torch.tensor(rng.standard_normal((n, *shape)), dtype=torch.float32)
    return model, x, torch.tensor(rng.integers(0, 10, n))


@pytest.mark.parametrize(("name", "shape", "n"), BUILT)
@pytest.mark.parametrize("kind", ["sign", "gaussian"])
def test_credit__gives_the_same_bits_again_and_in_another_model(name, shape, n, kind):
    model, x, targets = built(name, shape, n)
    params, noise = model.initial_params(), ActivityNoise(0.01, 2, kind)
    given = params.clone(), x.clone()
    first = ActivityModel(model, noise)
    other = pickle.loads(pickle.dumps(model))
    other.forward(params + 1.0, x[:1])
    askew = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    answers = [
        first.credit(params, x, targets, cross_entropy, KEY),
        first.credit(params, x, targets, cross_entropy, KEY),
        ActivityModel(other, noise).credit(params, askew, targets, cross_entropy, KEY),
    ]
    losses, estimate = answers[0]
    assert losses.shape == (4, n)
    assert estimate.shape == (model.n_params,)
    assert bool(estimate.isfinite().all())
    assert losses.dtype == estimate.dtype == torch.float32
    for again in answers[1:]:
        assert torch.equal(losses, again[0])
        assert torch.equal(estimate, again[1])
    assert torch.equal(params, given[0])
    assert torch.equal(x, given[1])


@pytest.mark.parametrize(("name", "shape", "n"), BUILT)
def test_credit__points_along_the_gradient(name, shape, n):
    model, x, targets = built(name, shape, n)
    targets = torch.zeros_like(targets)  # gradients that add up stand out of the noise
    params = model.initial_params()
    activity = ActivityModel(model, ActivityNoise(0.01, 1, "sign"))
    true = model.gradient(params, x, targets, cross_entropy)[1].double() * n
    slopes = []
    for k in range(40):
        key = (1, k, 0)
        found = activity.credit(params, x, targets, cross_entropy, key)[1].double()
        slopes.append(float(found @ true / (true @ true)))
    standard_error = np.std(slopes, ddof=1) / math.sqrt(len(slopes))
    assert abs(np.mean(slopes) - 1.0) <= 4 * standard_error
    assert standard_error < 0.5


def test_credit__builds_no_graph():
    asked = []

    def loss(logits, targets):
        asked.append(torch.is_grad_enabled() or logits.requires_grad)
        assert logits.grad_fn is None
        return cross_entropy(logits, targets)

    for name, shape, n in BUILT:
        model, x, targets = built(name, shape, n)
        activity = ActivityModel(model, ActivityNoise(0.01, 1, "sign"))
        params = model.initial_params().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pytest.fail, lambda t: t):
            answers = activity.credit(params, x, targets, loss, KEY)
        assert not any(a.requires_grad or a.grad_fn for a in answers)
    assert asked
    assert not any(asked)


@pytest.mark.parametrize(("name", "shape", "n"), BUILT)
def test_segments__run_one_by_one_give_the_same_bits(name, shape, n):
    model, x, targets = built(name, shape, n)
    noise, params = ActivityNoise(0.01, 2, "sign"), model.initial_params()
    whole = ActivityModel(model, noise)
    losses, estimate = whole.credit(params, x, targets, cross_entropy, KEY)
    workers = [
        ActivityModel(pickle.loads(pickle.dumps(model)), noise)
        for _ in range(whole.n_segments)
    ]
    outputs, kept, seen = x, [], []
    for i, worker in enumerate(workers):
        indices = torch.from_numpy(worker.segment_indices(i))
        own = torch.zeros_like(params)
        own[indices] = params[indices]
        outputs, calls = worker.segment_forward(i, own, outputs, KEY)
        kept.append(calls)
        seen.append(indices)
    found = workers[-1].output_losses(outputs, targets, cross_entropy)
    assert torch.equal(found, losses)
    assert sorted(torch.cat(seen).tolist()) == list(range(model.n_params))
    for i, worker in enumerate(workers):
        part = worker.segment_estimate(i, kept[i], found)
        assert torch.equal(part, estimate[seen[i]])
