"""Claims of `blocks.usercode`, `blocks.models` and `blocks.losses` on users' code."""

import os
import pickle
import random
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from torch import nn

from blocks.activity import ActivityModel, ActivityNoise
from blocks.batched import best_form, elementwise
from blocks.feedback import GaussianFeedback, direct_feedback
from blocks.forward import FlatModel
from blocks.linearised import linearise
from blocks.losses import per_sample_loss
from blocks.models import build_model
from blocks.usercode import UserCodeError, calling, secluded

LINEAR = "nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))"
HEAD = (
    "import os, random, sys\nimport numpy as np\nimport torch\nfrom torch import nn\n"
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return the function that writes a module of the user's; gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def write(body: str) -> str:
        names.append(f"users_module_{len(names)}")
        text = HEAD + textwrap.dedent(body)
        (tmp_path / f"{names[-1]}.py").write_text(text)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def factory(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"def factory(image_shape, n_classes):\n{lines}\n"


def build(module: str, **named):
    return build_model(f"{module}:factory", (1, 8, 8), 10, **named)


@pytest.mark.parametrize(
    ("top", "body", "message"),
    [
        ("sys.exit(0)", "", r"`model` must not end the process.*sys.exit\(0\) at user"),
        ("", "sys.exit('no')", r"`model` must not end the process.*sys.exit\('no'\)"),
        ("1 / 0", "", "importable module.*ZeroDivisionError: .* at users_.*line 5"),
        ("", "1 / 0", "without an error; got 'users_.*ZeroDivisionError.*line 7"),
        ("os.chdir('/')", "", "leave the working folder as it is.*'users_.*to /"),
        ("", "os.chdir('/')", "leave the working folder as it is"),
        ("torch.set_default_dtype(torch.float64)", "", "default dtype.*torch.float64"),
        ("", "torch.set_default_dtype(torch.float64)", "default dtype.*torch.float64"),
        ("torch.set_default_device('meta')", "", "default device.*meta"),
        (
            "import argparse\n"
            "p = argparse.ArgumentParser()\n"
            "p.add_argument('data')\n"
            "p.parse_args()",
            "",
            r"must not end the process.*sys.exit\(2\).*__name__",
        ),
    ],
)
def test_what_a_users_module_does_to_the_process__is_refused_and_undone(
    own, top, body, message
) -> None:
    before = os.getcwd(), torch.get_default_dtype(), torch.get_default_device()
    code = f"{top}\n{factory(f'{body}{chr(10)}return {LINEAR}')}"
    with pytest.raises(ValueError, match=message):
        build(own(code))
    now = os.getcwd(), torch.get_default_dtype(), torch.get_default_device()
    assert now == before


def test_a_module_that_parses_words__finds_none_of_ours(own, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ndcao", "train", "--model"])
    code = """
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=5)
    width = parser.parse_args().width
    """
    make = factory("return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))")
    assert build(own(textwrap.dedent(code) + make)) is not None
    assert sys.argv == ["ndcao", "train", "--model"]


def test_settings_that_a_run_decides__are_put_back(own) -> None:
    threads = torch.get_num_threads()
    code = """
    torch.set_num_threads(threads + 3)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    """
    build(
        own(
            f"threads = {threads}\n"
            + textwrap.dedent(code)
            + factory(f"return {LINEAR}")
        )
    )
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


def generators() -> tuple[str, ...]:
    """Return the states of the three global generators."""
    numpys = np.random.get_state()  # noqa: NPY002
    return str(torch.get_rng_state().tolist()), str(numpys), str(random.getstate())


@pytest.mark.parametrize(
    "draw", ["torch.rand(())", "np.random.rand()", "random.random()"]
)
def test_a_factory_that_draws_from_a_global_generator__is_a_function_of_the_seed(
    own, draw
) -> None:
    body = f"m = {LINEAR}\nnn.init.constant_(m[1].weight, float({draw}))\nreturn m"
    name = own(factory(body))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    states = generators()
    first = build(name, seed=3)[1].weight
    assert generators() == states
    np.random.seed(7)  # noqa: NPY002
    random.seed(5)
    assert torch.equal(first, build(name, seed=3)[1].weight)
    assert not torch.equal(first, build(name, seed=4)[1].weight)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return (x, x)", "one tensor of logits.*got tuple. Turn auxiliary outputs"),
        ("return x.double()", "float32 logits; got torch.float64"),
        ("return x[:1]", r"2 images to logits of shape \(2, 10\); got \(1, 10\)"),
        ("return self.fc(x)", r"RuntimeError: mat1 and mat2 .* at users_.*, line \d+"),
    ],
)
def test_a_network_with_other_answers__is_refused_with_what_it_gave(
    own, body, message
) -> None:
    code = f"""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            x = self.fc(x.flatten(1))
            {body}

    def factory(image_shape, n_classes):
        return Net()
    """
    with pytest.raises(UserCodeError, match=message):
        build(own(code))


def test_a_users_loss__cannot_change_what_it_is_given(own) -> None:
    code = """
    kept = []

    def loss(logits, targets):
        for old in kept:
            old.data.zero_()
        kept[:] = [logits, targets]
        logits.data *= 2
        targets.numpy()[:] = 1
        return logits[:, 0]
    """
    logits, targets = torch.ones(3, 4), torch.arange(3)
    function = per_sample_loss(f"{own(code)}:loss")
    first = function(logits, targets)
    function(logits, targets)
    assert first.tolist() == [2.0, 2.0, 2.0]
    assert torch.equal(logits, torch.ones(3, 4))
    assert targets.tolist() == [0, 1, 2]


def test_a_users_loss__that_writes_in_place_is_differentiated(own) -> None:
    code = "def loss(logits, targets):\n    logits *= 2\n    return logits.sum(1)\n"
    logits = torch.ones(3, 4, requires_grad=True)
    per_sample_loss(f"{own(code)}:loss")(logits, torch.arange(3)).sum().backward()
    assert torch.equal(logits.grad, torch.full((3, 4), 2.0))


def test_an_error_in_a_users_loss__is_one_sentence_that_travels(own) -> None:
    code = "def loss(logits, targets):\n    raise KeyError('a\\n\\x1b[31mb')\n"
    name = f"{own(code)}:loss"
    with pytest.raises(UserCodeError) as caught:
        per_sample_loss(name)(torch.ones(2, 2), torch.arange(2))
    text = str(pickle.loads(pickle.dumps(caught.value)))
    assert text.startswith(f"`loss` must run without an error; got '{name}' (KeyError")
    assert "\n" not in text
    assert "\x1b" not in text
    assert text.endswith("line 6). Mend the code.")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_code__passes(error) -> None:
    with pytest.raises(error), calling("loss", "a:b"):
        raise error


def test_secluded__undoes_nothing_of_torchs_device_mode() -> None:
    with calling("loss", "a:b"), secluded(0):
        pass
    assert torch.get_default_device().type == "cpu"


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def perceptron(kind: str) -> nn.Module:
    """Return a network that looks like a perceptron and computes something more."""
    first = [nn.ReLU(inplace=True)] if kind == "in place" else []
    cls = Doubled if kind == "subclass" else nn.Sequential
    torch.manual_seed(0)
    module = cls(nn.Flatten(), *first, nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    if kind == "hook":
        module[-1].register_forward_hook(lambda layer, args, y: 2 * y)
    if kind == "hook before":
        module.register_forward_pre_hook(lambda layer, args: (2 * args[0],))
    if kind == "method":
        module[1].forward = lambda x: torch.zeros(len(x), 5)
    return module


@pytest.mark.parametrize(
    "kind", ["in place", "subclass", "hook", "hook before", "method"]
)
def test_fast_forms__compute_what_the_network_computes_and_leave_its_inputs(
    kind,
) -> None:
    module = perceptron(kind)
    model = FlatModel(module, user="a:b")
    x = torch.randn(7, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = module(x.clone()).detach()
    theta = model.initial_params()
    before = x.clone()
    assert torch.allclose(model.forward(theta, x), expected, atol=1e-6)
    form = best_form(model.module, "cpu", 16)
    assert form == ("bmm" if kind == "in place" else "loop")
    many = model.logits_many(theta.expand(20, -1), x, form)
    assert torch.allclose(many, expected.expand_as(many), atol=1e-6)
    assert torch.equal(x, before)


def test_pairs__leave_their_inputs() -> None:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    for part in (nn.ReLU(inplace=True), nn.ELU(inplace=True), nn.Tanh()):
        assert torch.equal(elementwise(part, x), part(x.clone()))
        assert torch.equal(x, before)


def test_activity_perturbation__refuses_a_layer_whose_outputs_a_hook_changes() -> None:
    model = FlatModel(perceptron("hook"))
    with pytest.raises(ValueError, match="of Linear with hooks"):
        ActivityModel(model, ActivityNoise(0.1, 1, "sign"))


class Drifting(nn.Module):
    """Changes its own weights and answers the same memory again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.out = None

    def forward(self, x):
        if self.out is None or len(self.out) != len(x):
            self.out = torch.empty(len(x), 3)
        self.out = self.out.detach()
        self.out[:] = self.fc(x.flatten(1))
        self.fc.weight.data.mul_(0.5)
        return self.out


def test_a_users_network__that_writes_to_its_weights_is_given_them_anew() -> None:
    model = FlatModel(Drifting(), user="a:b")
    theta, x = model.initial_params(), torch.randn(4, 1, 2, 3)
    first = model.forward(theta, x)
    second = model.forward(theta, 2 * x)
    assert torch.equal(first, model.forward(theta, x))
    assert not torch.equal(first, second)
    loss, gradient, _ = model.gradient(
        theta, x, torch.arange(4) % 3, per_sample_loss("cross-entropy")
    )
    again = model.gradient(
        theta, x, torch.arange(4) % 3, per_sample_loss("cross-entropy")
    )
    assert loss == again[0]
    assert torch.equal(gradient, again[1])


class Auxiliary(nn.Sequential):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


def test_auxiliary_outputs_in_training_mode__are_refused_by_name() -> None:
    model = FlatModel(Auxiliary(nn.Flatten(), nn.Linear(6, 3)), user="a:b")
    theta, x = model.initial_params(), torch.randn(4, 1, 2, 3)
    assert model.forward(theta, x).shape == (4, 3)
    loss, targets = per_sample_loss("squared"), torch.arange(4) % 3
    for ask in (model.gradient, lambda *a: linearise(model, *a)):
        with pytest.raises(UserCodeError, match="`model` = 'a:b' must answer one"):
            ask(theta, x, targets, loss)


def test_a_loss_without_a_gradient__is_refused_where_one_is_wanted(own) -> None:
    code = "def loss(logits, targets):\n    return (logits.argmax(1) != targets)\n"
    name = f"{own(code)}:loss"
    loss, targets = per_sample_loss(name), torch.arange(4) % 3
    model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)))
    theta, x = model.initial_params(), torch.randn(4, 1, 2, 3)
    assert loss(model.forward(theta, x), targets).dtype == torch.float32
    message = f"`loss` '{name}' must be differentiable by torch for this algorithm"
    feedback = GaussianFeedback(0)
    for ask in (
        model.gradient,
        lambda *a: linearise(model, *a),
        lambda *a: direct_feedback(model, *a, feedback),
    ):
        with pytest.raises(UserCodeError, match=message):
            ask(theta, x, targets, loss)


def test_a_network_that_cannot_be_copied__is_refused_by_name() -> None:
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    with pytest.raises(UserCodeError, match=r"'a:b'.*cannot pickle"):
        FlatModel(module, user="a:b")
