"""Runs of device "cuda" on the stand-in: no tensor is where CUDA would refuse it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from blocks import ALGORITHMS, screening
from pipeline.replay import replay
from pipeline.runs import evaluate_run
from pipeline.train import resume, train

CAO = {"kind": "nd-cao"}
KERNEL = CAO | {"estimator": "kernel"}
MONOMIALS = CAO | {"estimator": "monomials", "monomials_kept": 0.5}
ANTITHETIC = CAO | {"estimator": "antithetic", "probes": 4, "rank": 1}
ES = {"kind": "open-es", "population_size": 4}
ACTIVITY = {"kind": "activity-perturbation"}
GAUSSIAN = {"noise": "gaussian", "draws": 2}
LENET = {"model": {"name": "lenet"}, "steps": 3}
RESNET = {"model": {"name": "resnet8", "options": {"norm": "batch"}}, "steps": 1}

# What the defaults leave out: settings of the algorithm, and of the run.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nd-cao-probes": (CAO | {"probes": 4, "window": 6}, {}),
    "nd-cao-antithetic": (ANTITHETIC, {}),
    "nd-cao-monomials": (MONOMIALS, {}),
    "nd-cao-kernel": (KERNEL, {}),
    "nd-cao-explicit": (CAO | {"screening": "explicit", "candidates": 10}, {}),
    "nd-cao-smooth": (CAO | {"images": (6, 8, 8)}, {}),
    "nd-cao-async": (CAO, {"mode": "async"}),
    "open-es-rank": (ES | {"rank": 1}, {}),
    "open-es-gaussian": (ES | {"probe_kind": "gaussian"}, {}),
    "open-es-loop": (ES, {"evaluation_form": "loop"}),
    "open-es-bmm": (ES, {"evaluation_form": "bmm"}),
    "open-es-vmap": (ES, LENET),
    "open-es-vmap-rank": (ES | {"rank": 1}, LENET),
    "open-es-vmap-batch-norm": (ES, RESNET),
    "activity-lenet": (ACTIVITY, LENET),
    "activity-gaussian": (ACTIVITY | GAUSSIAN, LENET),
    "activity-batch-norm": (ACTIVITY, RESNET),
    "activity-pipelined": (ACTIVITY, LENET | {"pipelined": True}),
    "activity-async": (ACTIVITY, LENET | {"mode": "async"}),
    "all-reduce-batch-norm": ({"kind": "all-reduce-sgd"}, RESNET),
    "sgd-squared": ({"kind": "sgd"}, {"loss": "squared"}),
    "next-partial": ({"kind": "next", "linearisation": "partial"}, {}),
}
RUNS = {kind: ({"kind": kind}, {}) for kind in ALGORITHMS} | VARIANTS


@pytest.fixture
def on(tiny):
    """Return the function that makes a short run's settings on a device."""

    def make(device, algorithm, steps=5, **flags):
        modes = ALGORITHMS[algorithm["kind"]].modes
        mode = "sync" if "sync" in modes else "async"
        flags = {"mode": mode, "eval_every": steps, **flags}
        if algorithm["kind"] == "activity-perturbation":
            flags["blocks"] = "by_layer"
        flags |= {"budget": {"steps": steps}, "loss_samples": 40, "redraw_every": 2}
        return tiny(algorithm=algorithm, device=device, **flags)

    return make


@pytest.fixture
def unstored(monkeypatch):
    """Do not write runs that have ended: it takes longer than such short ones do."""
    monkeypatch.setattr("pipeline.train.write_run", lambda ds, path: None)


@pytest.mark.usefixtures("unstored")
@pytest.mark.parametrize("name", list(RUNS))
def test_run__mixes_no_devices_and_learns_as_on_the_cpu(
    name, on, stand_in, tmp_path
) -> None:
    algorithm, flags = RUNS[name]
    here = train(on("cpu", algorithm, **flags), results=tmp_path)
    with stand_in():
        there = train(on("cuda", algorithm, **flags), results=tmp_path)
    assert there.attrs["status"] == "complete"
    losses, expected = there.train_loss.values, here.train_loss.values
    np.testing.assert_allclose(losses[0], expected[0], rtol=1e-5)
    if here.attrs["mode"] == "sync":
        np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_run__that_leaves_its_noise_on_the_host_is_refused(
    on, stand_in_cuda, tmp_path, monkeypatch
) -> None:
    drawn, host = screening.gaussian, torch.device("cpu")
    monkeypatch.setattr(screening, "gaussian", lambda rng, n, _: drawn(rng, n, host))
    with pytest.raises(stand_in_cuda, match="on the host"):
        train(on("cuda", CAO), results=tmp_path)


RESUMED = {
    "nd-cao": CAO | {"window": 6},
    "nd-cao-monomials": MONOMIALS,
    "nd-cao-kernel": KERNEL,
    "nd-cao-antithetic": ANTITHETIC,
    "random-search": {"kind": "random-search"},
    "activity-perturbation": ACTIVITY,
    "nosync": {"kind": "nosync"},
    "osp": {"kind": "osp"},
}


@pytest.mark.usefixtures("unstored")
@pytest.mark.parametrize("name", list(RESUMED))
def test_resume__puts_states_where_they_were(name, on, stand_in_cuda, tmp_path) -> None:
    config = on("cuda", RESUMED[name], steps=12, eval_every=4)
    whole = train(config, results=tmp_path / "whole")
    stop = threading.Event()

    def after_four(progress) -> None:
        if progress.phase == "training" and progress.round >= 4:
            stop.set()

    cut = train(config, results=tmp_path / "cut", progress=after_four, stop=stop)
    assert cut.attrs["status"] == "interrupted"
    ds = resume(cut.attrs["run_id"], results=tmp_path / "cut")
    assert ds.attrs["status"] == "complete"
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]


@pytest.mark.parametrize(
    "algorithm", [CAO, ACTIVITY, {"kind": "async-sgd"}], ids=lambda a: a["kind"]
)
def test_replay__of_an_asynchronous_run_mixes_no_devices(
    algorithm, on, stand_in_cuda, tmp_path
) -> None:
    config = on("cuda", algorithm, steps=8, mode="async", delays={1: 0.06})
    ds = train(config, results=tmp_path)
    line = replay(ds.attrs["run_id"], results=tmp_path)
    assert line["matches"]
    assert line["losses_match"]


def test_evaluate_run__mixes_no_devices(on, stand_in_cuda, tmp_path) -> None:
    algorithm = {"kind": "all-reduce-sgd"}
    ds = train(on("cuda", algorithm, **RESNET), results=tmp_path)
    line = evaluate_run(ds.attrs["run_id"], results=tmp_path)
    assert line["test_accuracy"] == ds.attrs["test_accuracy"]
