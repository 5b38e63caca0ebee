"""Runs with networks and losses of the user's own: what they may do, and what not."""

import itertools
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from blocks.usercode import UserCodeError
from pipeline.context import context_of
from pipeline.runs import evaluate_run, export_run, load_model
from pipeline.train import train

HEAD = (
    "import os, random, sys\nimport numpy as np\nimport torch\nfrom torch import nn\n"
)
COUNT = itertools.count()  # runs are known by their names, code by its module's


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return the function that writes a module of the user's; gives its name."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def write(body: str) -> str:
        names.append(f"users_run_module_{next(COUNT)}")
        text = HEAD + textwrap.dedent(body)
        (folder / f"{names[-1]}.py").write_text(text)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


KINDS = {
    "nd-cao": {},
    "nd-cao-probes": {
        "algorithm": {"kind": "nd-cao", "probes": 4},
        "evaluation_form": "loop",
    },
    "nd-cao-vmap": {
        "algorithm": {"kind": "nd-cao", "probes": 4},
        "evaluation_form": "vmap",
    },
    "nd-cao-async": {"mode": "async"},
    "sgd": {"algorithm": {"kind": "sgd", "batch_size": 32}},
    "async-sgd": {
        "algorithm": {"kind": "async-sgd", "batch_size": 32},
        "mode": "async",
        "nodes": 2,
    },
    "next": {"algorithm": {"kind": "next", "linearisation": "partial"}, "nodes": 2},
    "dfa": {"algorithm": {"kind": "dfa", "batch_size": 32}},
    "activity-perturbation": {
        "algorithm": {"kind": "activity-perturbation"},
        "blocks": "by_layer",
    },
    "activity-pipelined": {
        "algorithm": {"kind": "activity-perturbation"},
        "blocks": "by_layer",
        "pipelined": True,
    },
}

# A layer of the user's that changes what it was given, now and before, or does not.
WORST = "for old in kept:\n    old.data.fill_(9)\nkept.append(x)\n"
SHIFTS = {
    "plain": "return x - 0.5",
    "in place": "x -= 0.5\nreturn x",
    "kept": f"{WORST}y = x - 0.5\nx.data.numpy()[:] = 7\nreturn y",
}


def network(shift: str) -> str:
    lines = "\n".join(f"        {line}" for line in shift.splitlines())
    return f"""
kept = []

class Shift(nn.Module):
    def forward(self, x):
{lines}

def factory(image_shape, n_classes):
    return nn.Sequential(
        Shift(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, n_classes)
    )
"""


@pytest.fixture
def answers(own, tiny, tmp_path):
    """Return the function that trains and evaluates; parameters and losses found."""

    def found(kind: str, **flags):
        flags = {"blocks": "by_layer", "budget": {"steps": 3}} | KINDS[kind] | flags
        ds = train(tiny(**flags), results=tmp_path, again=True)
        again = evaluate_run(ds.attrs["store"])
        assert again["test_accuracy"] == ds.attrs["test_accuracy"]
        assert again["test_loss"] == ds["test_loss"].values[-1]
        return ds.attrs["params_sha256"], ds["test_loss"].values.tolist()

    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_changes_its_inputs__trains_as_one_that_does_not(
    kind, own, answers
) -> None:
    good, *bad = (
        answers(kind, model={"name": f"{own(network(shift))}:factory"})
        for name, shift in SHIFTS.items()
        if (kind, name) != ("nd-cao-vmap", "kept")  # vmap knows no numpy views
    )
    assert all(one == good for one in bad)


LOSSES = {
    "plain": "labels = targets - 1",
    "in place": "targets -= 1\nlabels = targets",
    "kept": (
        "for old in kept:\n    old.data.fill_(3)\n"
        "kept.extend([targets, logits])\n"
        "labels = torch.tensor(targets.numpy()) - 1\n"
        "targets.numpy()[:] = 7"
    ),
}


def loss(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"""
kept = []

def loss(logits, targets):
{lines}
    return nn.functional.cross_entropy(logits, labels % 10, reduction="none")
"""


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "nd-cao-vmap"])
def test_a_loss_that_changes_its_inputs__trains_as_one_that_does_not(
    kind, own, answers
) -> None:
    good, *bad = (
        answers(kind, loss=f"{own(loss(body))}:loss") for body in LOSSES.values()
    )
    assert all(one == good for one in bad)


# -- what is no function of its arguments ----------------------------------------------


def trained(tiny, tmp_path, **flags):
    return train(tiny(**{"blocks": "by_layer"} | flags), results=tmp_path / "results")


NET = """
import itertools, time
calls = itertools.count()

class Net(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.fc = nn.Linear(64, n_classes)
        self.n = 0
        {init}

    def forward(self, x):
        x = x.flatten(1)
        y = self.fc(x)
        {forward}
        return y

def factory(image_shape, n_classes):
    net = Net(n_classes)
    {made}
    return net
"""


def net(init: str = "pass", forward: str = "pass", made: str = "pass") -> str:
    return NET.format(init=init, forward=forward, made=made)


GOOD_NETS = {
    "dropout": net("self.drop = nn.Dropout(0.5)", "y = self.drop(y)"),
    "batch norm": net("self.norm = nn.BatchNorm1d(10)", "y = self.norm(y)"),
    "draws of numpy": net(
        made="nn.init.constant_(net.fc.bias, float(np.random.rand()))"
    ),
    "zero at first": net(made="nn.init.zeros_(net.fc.weight)"),
    "frozen": net("self.w = nn.Parameter(torch.randn(10), requires_grad=False)"),
}
BAD_NETS = {
    "own generator": (
        net(made="net.fc.bias.data.fill_(np.random.default_rng().random())"),
        r"same network from the same `seed`.*`fc\.bias` had other values",
    ),
    "counter": (
        net(made="net.fc.bias.data.fill_(next(calls))"),
        r"same network from the same `seed`.*`fc\.bias` had other values",
    ),
    "frozen counter": (
        net(made="net.register_buffer('k', torch.tensor(next(calls)))"),
        "same network from the same `seed`.*`k` had other values",
    ),
    "numpy when evaluated": (
        net(forward="y = y + 1e-9 * float(np.random.rand())"),
        "no randomness where it is scored and evaluated.*numpy's generator",
    ),
    "python when evaluated": (
        net(forward="random.random()"),
        "no randomness where it is scored and evaluated.*Python's generator",
    ),
    "dropout when evaluated": (
        net(forward="y = nn.functional.dropout(y, 0.5)"),
        "no randomness where it is scored and evaluated.*torch's generator",
    ),
    "clock": (net(forward="y = y + time.time() % 1"), "same whenever it is asked"),
    "state": (
        net(forward="self.n += 1\n        y = y + self.n // 6"),
        "same whenever it is asked",
    ),
    "batch mean": (net(forward="y = y - y.mean(0)"), "by itself.*the other samples"),
    "batch norm without statistics": (
        net("self.norm = nn.BatchNorm1d(10, track_running_stats=False)").replace(
            "return y", "return self.norm(y)"
        ),
        "by itself.*the other samples",
    ),
    "batch size": (net(forward="y = y / len(y)"), "by itself.*size or the order"),
    "place": (
        net(forward="y = y + torch.arange(len(y))[:, None]"),
        "by itself.*size or the order",
    ),
    "NaN": (net(forward="y = y / 0 * 0"), r"finite numbers.*NaN for 8 of 8 samples"),
    "no parameters": (net(forward="y = x[:, :10]"), "from its own parameters"),
    "a working folder": (net(forward="os.chdir('/')"), "leave the working folder"),
}


@pytest.mark.parametrize("name", GOOD_NETS)
@pytest.mark.parametrize("kind", ["nd-cao", "sgd"])
def test_a_network_that_is_a_function__trains(name, kind, own, tiny, tmp_path) -> None:
    model = {"name": f"{own(GOOD_NETS[name])}:factory"}
    ds = trained(tiny, tmp_path, model=model, **KINDS[kind])
    assert ds.attrs["status"] == "complete"


@pytest.mark.parametrize("name", BAD_NETS)
def test_a_network_that_is_no_function__is_refused_with_the_cause(
    name, own, tiny, tmp_path
) -> None:
    code, message = BAD_NETS[name]
    model = {"name": f"{own(code)}:factory"}
    with pytest.raises(UserCodeError, match=message):
        trained(tiny, tmp_path, model=model)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".zarr", ".npz")]


TRAINED = {
    "numpy": ("y = y * float(np.random.rand())", "torch's generator only.*numpy's"),
    "count": ("self.n += 1; y = y * self.n", "same gradient whenever"),
    "auxiliary": ("y = (y, x)", "one tensor of logits; got tuple"),
    "NaN": ("y = y + (0 * y.abs().sqrt() / 0).detach()", "finite loss and gradient"),
    "detached": ("y = y.detach()", "differentiable.*logits without a gradient"),
}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["sgd", "next"])
def test_a_network_that_trains_otherwise__is_refused_with_the_cause(
    name, kind, own, tiny, tmp_path
) -> None:
    line, message = TRAINED[name]
    code = net(forward=f"if self.training: {line}")
    model = {"name": f"{own(code)}:factory"}
    with pytest.raises(UserCodeError, match=message):
        trained(tiny, tmp_path, model=model, **KINDS[kind])
    if name != "detached":  # gradient-free runs do not ask for it
        ds = trained(tiny, tmp_path, model=model)
        assert ds.attrs["status"] == "complete"


LOSS = """
import itertools
count = itertools.count(1)

def loss(logits, targets):
    found = nn.functional.cross_entropy(logits, targets, reduction="none")
    {line}
    return found
"""
BAD_LOSSES = {
    "number of calls": ("found = found * next(count)", "same whenever it is asked"),
    "chance": ("found = found * random.random()", "no randomness.*Python's generator"),
    "the batch": ("found = found / found.mean()", "by itself.*other samples"),
    "its size": ("found = found / len(found)", "by itself.*size or the order"),
    "NaN": ("found = found / 0 * 0", r"finite numbers.*NaN for 8 of 8"),
    "a mean": ("found = found.mean()", "one number a sample"),
    "an error": ("raise KeyError('x')", r"KeyError: 'x' at users_run.*line \d+"),
    "an exit": ("sys.exit(0)", r"must not end the process.*sys.exit\(0\)"),
    "a default": (
        "torch.set_default_dtype(torch.float64)",
        "leave torch's default dtype as it is",
    ),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_a_loss_that_is_no_function__is_refused_with_the_cause(
    name, own, tiny, tmp_path
) -> None:
    line, message = BAD_LOSSES[name]
    with pytest.raises(UserCodeError, match=message):
        trained(tiny, tmp_path, loss=f"{own(LOSS.format(line=line))}:loss")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".zarr", ".npz")]


@pytest.mark.parametrize("kind", ["sgd", "next", "dfa"])
def test_accuracy_as_a_loss__trains_without_gradients_and_is_refused_with_them(
    kind, own, tiny, tmp_path
) -> None:
    code = "def loss(logits, targets):\n    return logits.argmax(1) != targets\n"
    loss = f"{own(code)}:loss"
    ds = trained(tiny, tmp_path, loss=loss)
    wrong = 1 - ds["test_accuracy"].values
    assert np.allclose(ds["test_loss"].values, wrong, rtol=0, atol=1e-12)
    with pytest.raises(UserCodeError, match=r"`loss`.*must be differentiable by torch"):
        trained(tiny, tmp_path, loss=loss, **KINDS[kind])


def test_a_float64_default_of_the_process__is_refused(tiny, tmp_path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="default dtype must be float32; got tor"):
            trained(tiny, tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_network_that_starts_otherwise_on_a_worker__is_refused(
    own, tiny, context_for
) -> None:
    model = {"name": f"{own(net())}:factory"}
    spec = context_for(tiny(model=model, blocks="by_layer"), "origins").spec
    told = replace(spec, origin=context_of(spec).origin_sha256)
    assert context_of(told) is context_of(spec)
    with pytest.raises(UserCodeError, match=r"on every machine.*than on the client"):
        context_of(replace(spec, origin="0" * 64))


def test_evaluate__refuses_a_network_that_answers_by_chance_by_now(
    own, tiny, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("USERS_CHANCE", "")
    line = "if os.environ['USERS_CHANCE']: y = y + torch.rand(())"
    model = {"name": f"{own(net(forward=line))}:factory"}
    ds = trained(tiny, tmp_path, model=model)
    monkeypatch.setenv("USERS_CHANCE", "1")
    with pytest.raises(UserCodeError, match=r"randomness.*torch's generator"):
        evaluate_run(ds.attrs["store"])


# -- export ----------------------------------------------------------------------------

TIED = """
class Tied(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, n_classes)
        self.b.weight = self.a.weight
        {init}

    def forward(self, x):
        return self.head(self.b(torch.tanh(self.a(x.flatten(1)))))

def factory(image_shape, n_classes):
    return Tied(n_classes)
"""


def test_export__of_tied_weights_has_every_name_and_starts_another_run(
    own, tiny, tmp_path
) -> None:
    model = {"name": f"{own(TIED.format(init='pass'))}:factory"}
    first = trained(tiny, tmp_path, model=model)
    file = export_run(first.attrs["store"], tmp_path / "m.safetensors")
    stored, module = load_file(file), load_model(first)
    module.load_state_dict({k: v for k, v in stored.items() if "standard" not in k})
    assert torch.equal(stored["a.weight"], stored["b.weight"])
    after = trained(tiny, tmp_path, model=model, init=str(file))
    assert float(after["test_loss"][0]) == float(first["test_loss"][-1])


EXTRA = TIED.replace(
    "def forward",
    """def get_extra_state(self):
        return {{"a": 1}}

    def forward""",
)
TAKEN = """self.standardise = nn.BatchNorm1d(3)
        self.standardise.mean = nn.Parameter(torch.ones(2))"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (TIED.format(init=TAKEN), r"got .* with `standardise\.mean`"),
        (EXTRA.format(init="pass"), r"dense tensors .*extra_state.* a dict"),
    ],
)
def test_export__of_what_the_file_cannot_hold_is_refused(
    code, message, own, tiny, tmp_path
) -> None:
    ds = trained(tiny, tmp_path, model={"name": f"{own(code)}:factory"})
    with pytest.raises(ValueError, match=message):
        export_run(ds.attrs["store"], tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_a_sparse_buffer__is_refused_by_name(own, tiny, tmp_path) -> None:
    code = net("self.register_buffer('s', torch.eye(2).to_sparse())")
    with pytest.raises(ValueError, match=r"dense parameters and buffers; got `s`"):
        trained(tiny, tmp_path, model={"name": f"{own(code)}:factory"})


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_error_in_the_middle_of_a_run__is_one_sentence_and_loses_nothing(
    mode, own, tiny, tmp_path
) -> None:
    line = "if next(count) > 300: raise KeyError('late')"
    loss = f"{own(LOSS.format(line=line))}:loss"
    with pytest.raises(UserCodeError, match=r"`loss` must.*KeyError: 'late' at users"):
        trained(tiny, tmp_path, loss=loss, mode=mode, budget={"steps": 500})
    assert len(list(tmp_path.rglob("*.npz"))) == 1
