"""Runs with networks and losses of the user's own: what they may do, and what not."""

import sys
import textwrap

import pytest

from pipeline.runs import evaluate_run
from pipeline.train import train

HEAD = (
    "import os, random, sys\nimport numpy as np\nimport torch\nfrom torch import nn\n"
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return the function that writes a module of the user's; gives its name."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def write(body: str) -> str:
        names.append(f"users_run_module_{len(names)}")
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
