"""Claims of `blocks.forward`, `blocks.held`, `blocks.batched` and `blocks.flat`."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

from blocks.batched import best_form, is_perceptron, samples_at_once
from blocks.forward import FlatModel, calibrate_buffers
from blocks.losses import cross_entropy
from blocks.models import MODELS, build_model

SHAPE = (1, 8, 8)


def flat_model(name, **options):
    return FlatModel(build_model(name, SHAPE, 10, seed=2, **options))


def perturbed(model, n_thetas, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_thetas, model.n_params, generator=generator)
    return model.initial_params() + 0.05 * noise


def images(n, seed=1, shape=SHAPE):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_flat_model__forward_equals_the_module_with_those_parameters(name):
    module = build_model(name, SHAPE, 10, seed=2)
    before = copy.deepcopy(module.state_dict())
    model = FlatModel(module)
    theta = perturbed(model, 1)[0]
    reference = copy.deepcopy(module)
    nn.utils.vector_to_parameters(theta, reference.parameters())
    x = images(130)
    with torch.no_grad():
        expected = reference(x)
    got = model.forward(theta, x)
    assert not got.requires_grad
    # float32 sums of up to 1,024 terms in another batch shape
    assert torch.allclose(got, expected, atol=1e-5)
    after = module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("n_thetas", [1, 2, 37])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {}),
        ("mlp", {"hidden": (20, 11), "activation": "gelu"}),
        ("mlp", {"hidden": ()}),
        ("lenet", {}),
        ("cifar_cnn", {}),
        ("resnet8", {}),
        ("resnet8", {"norm": "batch"}),
    ],
)
def test_logits_many__all_forms_agree(name, options, n_thetas):
    model = flat_model(name, **options)
    thetas = perturbed(model, n_thetas)
    x = images(6)
    expected = torch.stack([model.forward(theta, x) for theta in thetas])
    for form in ("auto", "loop", "vmap", *(["bmm"] if name == "mlp" else [])):
        got = model.logits_many(thetas, x, form)
        assert got.shape == (n_thetas, 6, 10)
        assert got.is_contiguous()
        assert not got.requires_grad
        assert torch.allclose(got, expected, atol=1e-5), form
        assert torch.equal(got, model.logits_many(thetas, x, form)), form


def test_logits_many__vmap_takes_many_samples_in_parts(monkeypatch):
    model = flat_model("lenet")
    thetas, x = perturbed(model, 3), images(7)
    whole = model.logits_many(thetas, x, "vmap")
    monkeypatch.setattr("blocks.batched._PASSES_AT_ONCE", 6)
    parts = model.logits_many(thetas, x, "vmap")
    assert parts.shape == whole.shape
    assert parts.is_contiguous()
    assert torch.allclose(parts, whole, atol=1e-5)


def test_logits_many__bmm_takes_nested_sequences_no_bias_and_dropout():
    module = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Identity(), nn.Linear(64, 9, bias=False), nn.Tanh()),
        nn.Dropout(0.5),
        nn.Linear(9, 4),
    )
    model = FlatModel(module)
    thetas, x = perturbed(model, 5), images(7)
    loop, bmm = (model.logits_many(thetas, x, form) for form in ("loop", "bmm"))
    assert torch.allclose(loop, bmm, atol=1e-5)


@pytest.mark.parametrize("form", ["loop", "vmap", "bmm"])
def test_flat_model__results_do_not_depend_on_the_alignment_of_inputs(form):
    model = flat_model("mlp")
    thetas, x = perturbed(model, 5), images(33)
    expected = model.logits_many(thetas, x, form)
    single = model.forward(thetas[0].clone(), x)
    for shift in (1, 2, 3, 5, 8, 13):
        raw = np.zeros(x.numel() + 64, dtype=np.float32)
        moved = torch.from_numpy(raw)[shift : shift + x.numel()].view(x.shape)
        moved.copy_(x)
        pool = torch.zeros(thetas.numel() + 64)
        points = pool[shift : shift + thetas.numel()].view(thetas.shape)
        points.copy_(thetas)
        assert torch.equal(model.logits_many(points, moved, form), expected)
        assert torch.equal(model.forward(points[0], moved), single)
        strided = moved.to(memory_format=torch.channels_last)
        assert torch.equal(model.forward(points[0], strided), single)


def test_gradient__equals_autograd_of_the_module_and_of_frozen_parts_is_absent():
    module = build_model("mlp", SHAPE, 10, seed=2)
    module.fc1.bias.requires_grad_(False)
    model = FlatModel(module)
    x, targets = images(20), torch.arange(20) % 10
    loss, gradient, buffers = model.gradient(
        model.initial_params(), x, targets, cross_entropy
    )
    module.train()
    expected = cross_entropy(module(x), targets).mean()
    expected.backward()
    parts = [p.grad.reshape(-1) for p in module.parameters() if p.requires_grad]
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient, torch.cat(parts), atol=1e-6)
    assert buffers is None
    assert gradient.shape == (model.n_params,)


def test_gradient__matches_finite_differences_with_a_shared_weight():
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)
    )
    module[3].weight = module[1].weight
    model = FlatModel(module)
    assert model.n_params == 64 * 64 + 2 * 64
    x, targets = images(8), torch.arange(8)
    theta = model.initial_params()
    _, gradient, _ = model.gradient(theta, x, targets, cross_entropy)
    direction = torch.sign(gradient)
    ends = [
        float(cross_entropy(model.forward(theta + h * direction, x), targets).mean())
        for h in (1e-3, -1e-3)
    ]
    # curvature and float32 rounding at h = 1e-3
    slope = (ends[0] - ends[1]) / 2e-3
    assert slope == pytest.approx(float(gradient.abs().sum()), rel=0.02)


def test_gradient__batch_norm_buffers_move_as_in_training_mode_and_calls_are_pure():
    module = build_model("resnet8", SHAPE, 10, seed=2, norm="batch")
    model = FlatModel(module)
    x, targets = images(16), torch.arange(16) % 10
    theta, start = model.initial_params(), model.initial_buffers()
    first = model.gradient(theta, x, targets, cross_entropy, start)
    second = model.gradient(theta, x, targets, cross_entropy, start)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])
    assert torch.equal(start, model.initial_buffers())
    module.train()(x)
    floats = [b.reshape(-1) for b in module.buffers() if b.is_floating_point()]
    assert torch.allclose(first[2], torch.cat(floats), atol=1e-6)
    moved = model.forward(theta, x, first[2])
    assert not torch.equal(moved, model.forward(theta, x, start))
    assert torch.equal(moved, model.forward(theta, x, first[2]))


def test_gradient__dropout_is_a_function_of_the_seed_alone():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
    model = FlatModel(module)
    theta, x, targets = model.initial_params(), images(9), torch.arange(9) % 3
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a = model.gradient(theta, x, targets, cross_entropy, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    b = model.gradient(theta, x, targets, cross_entropy, seed=4)
    c = model.gradient(theta, x, targets, cross_entropy, seed=5)
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[1], c[1])
    assert torch.equal(
        model.forward(theta, x, training=True, seed=1),
        model.forward(theta, x, training=True, seed=1),
    )


def test_calibrate_buffers__are_plain_averages_over_the_batches():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.9))
    module.append(nn.Linear(64, 3))
    model = FlatModel(module)
    batches = [images(5, 1), 3 * images(5, 2), images(5, 3) - 1]
    theta = model.initial_params()
    buffers = calibrate_buffers(model, theta, batches)
    mean = torch.stack([x.mean() for x in batches]).mean()
    variance = torch.stack([x.var() for x in batches]).mean()
    assert torch.allclose(buffers, torch.stack([mean, variance]), rtol=1e-5)
    assert torch.equal(buffers, calibrate_buffers(model, theta, batches))
    assert torch.equal(model.initial_buffers(), torch.tensor([0.0, 1.0]))
    # ordinary training passes keep their moving average
    moved = model.gradient(theta, batches[0], torch.zeros(5).long(), cross_entropy)[2]
    assert float(moved[0]) == pytest.approx(0.1 * float(batches[0].mean()), rel=1e-5)


def test_calibrate_buffers__without_buffers_is_empty_and_without_batches_an_error():
    plain = flat_model("mlp")
    assert calibrate_buffers(plain, plain.initial_params(), []).shape == (0,)
    model = flat_model("resnet8", norm="batch")
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate_buffers(model, model.initial_params(), [])


def test_to_module__is_independent_and_gives_the_same_logits():
    model = flat_model("resnet8", norm="batch")
    theta, buffers = perturbed(model, 1)[0], model.initial_buffers() + 0.5
    module = model.to_module(theta, buffers)
    x = images(4)
    expected = model.forward(theta, x, buffers)
    model.forward(model.initial_params(), x)
    with torch.no_grad():
        assert torch.equal(module(x), expected)
    tensors = [*module.parameters(), *module.buffers()]
    storages = {t.untyped_storage().data_ptr() for t in tensors}
    assert len(storages) == len(tensors)
    assert not module.training


def test_flat_model__pickles_to_the_same_function():
    model = flat_model("resnet8", norm="batch")
    model.forward(perturbed(model, 1)[0], images(2))
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.initial_params(), model.initial_params())
    assert torch.equal(again.initial_buffers(), model.initial_buffers())
    theta, x = perturbed(model, 1)[0], images(5)
    assert torch.equal(again.forward(theta, x), model.forward(theta, x))


def test_flat_model__threads_do_not_mix_their_parameters():
    model = flat_model("lenet")
    thetas, x = perturbed(model, 4), images(8)
    expected = [model.forward(theta, x) for theta in thetas]
    wrong = []

    def work(k):
        answers = [model.forward(thetas[k], x) for _ in range(30)]
        wrong.extend(k for answer in answers if not torch.equal(answer, expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong


def test_flat_model__double_precision_modules_are_held_in_float32():
    model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double())
    assert model.forward(model.initial_params(), images(2)).dtype == torch.float32


def test_best_form__is_the_fixed_table():
    mlp, wide = (build_model("mlp", (1, 28, 28), 10, hidden=h) for h in (32, 256))
    lenet = build_model("lenet", SHAPE, 10)
    assert best_form(mlp, "cpu", 1) == "loop"
    assert best_form(mlp, "cpu", 64) == best_form(wide, "cuda", 64) == "bmm"
    assert best_form(wide, "cpu", 64) == best_form(lenet, "cpu", 64) == "loop"
    assert best_form(lenet, "cuda", 64) == "vmap"
    assert samples_at_once(lenet, "cpu") == 100


def test_is_perceptron__refuses_whatever_is_not_plain():
    flatten, linear = nn.Flatten(), nn.Linear(64, 3)
    assert is_perceptron(nn.Sequential(flatten, linear))
    for module in (
        linear,
        nn.Sequential(linear),
        nn.Sequential(flatten),
        nn.Sequential(linear, flatten),
        nn.Sequential(flatten, linear, nn.PReLU()),
        nn.Sequential(flatten, linear, nn.Softmax(1)),
        nn.Sequential(nn.Flatten(0), linear),
        nn.Sequential(flatten, nn.Linear(64, 3).requires_grad_(False)),
    ):
        assert not is_perceptron(module)


def test_flat_model__bad_arguments_say_what_to_do():
    model, x = flat_model("lenet"), images(2)
    theta = model.initial_params()
    with pytest.raises(ValueError, match=r"`params` must have shape \(21386,\)"):
        model.forward(theta[:-1], x)
    with pytest.raises(ValueError, match="float64"):
        model.forward(theta.double(), x)
    with pytest.raises(ValueError, match=r"`buffers` must have shape \(0,\)"):
        model.forward(theta, x, torch.zeros(3))
    with pytest.raises(TypeError, match=r"float32; got torch\.uint8"):
        model.forward(theta, x.byte())
    with pytest.raises(ValueError, match=r"shape \(K, 21386\)"):
        model.logits_many(theta, x)
    with pytest.raises(ValueError, match='"loop", "vmap", "bmm"'):
        model.logits_many(theta[None], x, "map")
    with pytest.raises(ValueError, match="one Flatten"):
        model.logits_many(theta[None], x, "bmm")


@pytest.mark.gpu
def test_flat_model__cuda_agrees_with_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    module = build_model("resnet8", SHAPE, 10, norm="batch")
    cpu, cuda = FlatModel(module), FlatModel(module, "cuda")
    thetas, x = perturbed(cpu, 3), images(4)
    got = cuda.logits_many(thetas.cuda(), x.cuda())
    # other convolution algorithms, TF32 possibly on
    assert torch.allclose(got.cpu(), cpu.logits_many(thetas, x), atol=1e-2)
    seeded = cuda.gradient(
        thetas[0].cuda(), x.cuda(), torch.arange(4).cuda(), cross_entropy
    )
    assert seeded[1].device.type == "cuda"


def test_forward__sees_values_that_were_written_over() -> None:
    model = FlatModel(nn.Linear(2, 3, bias=False))
    theta, x = torch.zeros(6), torch.ones(1, 2)
    assert model.forward(theta, x).tolist() == [[0.0, 0.0, 0.0]]
    theta += 1.0
    assert model.forward(theta, x).tolist() == [[2.0, 2.0, 2.0]]
    theta[:2] = 0.0
    assert model.forward(theta, x).tolist() == [[0.0, 2.0, 2.0]]
