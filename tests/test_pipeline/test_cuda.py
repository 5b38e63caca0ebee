"""Runs on a CUDA device: the same contracts, and the CPU's results to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocks import ALGORITHMS
from pipeline.replay import replay
from pipeline.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SETTINGS = {
    "nd-cao-probes": {"kind": "nd-cao", "probes": 4},
    "nd-cao-antithetic": {
        "kind": "nd-cao",
        "probes": 4,
        "rank": 1,
        "estimator": "antithetic",
    },
    "open-es-rank": {"kind": "open-es", "population_size": 6, "rank": 1},
}
SETTINGS |= {kind: {"kind": kind} for kind in ALGORITHMS}


def on(device, tiny, name, **flags):
    """A short run's settings on a device."""
    algorithm = SETTINGS[name]
    if "sync" not in ALGORITHMS[algorithm["kind"]].modes:
        flags = {"mode": "async"} | flags
    if algorithm["kind"] == "activity-perturbation":
        flags["blocks"] = "by_layer"
    return tiny(
        algorithm=algorithm, loss_samples=64, device=device, redraw_every=2, **flags
    )


@pytest.mark.parametrize("name", list(SETTINGS))
def test_run__on_cuda_starts_as_on_the_cpu_and_repeats_itself(
    name, tiny, tmp_path
) -> None:
    there = on("cuda", tiny, name, budget={"steps": 3})
    runs = [train(there, results=tmp_path / str(i)) for i in range(2)]
    here = train(on("cpu", tiny, name, budget={"steps": 3}), results=tmp_path / "cpu")
    assert runs[0].attrs["status"] == "complete"
    if runs[0].attrs["mode"] == "sync":
        assert runs[0].attrs["params_sha256"] == runs[1].attrs["params_sha256"]
    np.testing.assert_allclose(
        runs[0].train_loss.values[0], here.train_loss.values[0], rtol=1e-4
    )


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    "name", ["nd-cao", "nd-cao-antithetic", "open-es-rank", "activity-perturbation"]
)
def test_replay__on_cuda_gives_the_same_bits(mode, name, tiny, tmp_path) -> None:
    config = on("cuda", tiny, name, mode=mode, budget={"steps": 10})
    ds = train(config, results=tmp_path)
    line = replay(ds.attrs["run_id"], results=tmp_path)
    assert line["matches"]
    assert line["losses_match"]


@pytest.mark.parametrize("name", ["nd-cao", "open-es-rank", "activity-perturbation"])
def test_cluster__on_cuda_gives_the_bits_of_one_process(name, tiny, tmp_path) -> None:
    config = on("cuda", tiny, name, budget={"steps": 6})
    alone = train(config, results=tmp_path / "alone")
    cluster = {"kind": "local", "workers": 1, "dashboard": False}
    config = on("cuda", tiny, name, budget={"steps": 6}, cluster=cluster)
    ds = train(config, results=tmp_path / "cluster")
    assert ds.attrs["params_sha256"] == alone.attrs["params_sha256"]


@pytest.mark.parametrize("model", ["lenet", "resnet8"])
def test_activity_perturbation__goes_through_convolutions_on_cuda(
    model, tiny, tmp_path
) -> None:
    flags = {"model": {"name": model}, "budget": {"steps": 2}}
    config = on("cuda", tiny, "activity-perturbation", **flags)
    assert train(config, results=tmp_path).attrs["status"] == "complete"
