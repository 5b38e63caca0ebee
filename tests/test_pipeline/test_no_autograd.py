"""What is declared gradient-free builds no autograd graph, wherever it computes."""

from __future__ import annotations

import pytest
import torch

from blocks import ALGORITHMS
from blocks.algorithm import Information
from pipeline.train import train

DERIVATIVES = (
    Information.GRADIENT_ORACLE
    | Information.JACOBIAN_ORACLE
    | Information.OUTPUT_ERROR  # a layer's own derivative, inside direct feedback
)
FREE = [k for k, a in ALGORITHMS.items() if not a.information & DERIVATIVES]
SETTINGS = {
    "nd-cao": [{}, {"probes": 4}, {"probes": 4, "rank": 1, "estimator": "antithetic"}],
    "open-es": [{"population_size": 4}, {"population_size": 4, "rank": 1}],
    "spsa": [{}, {"rank": 1}],
    "activity-perturbation": [{}, {"draws": 2, "noise": "gaussian"}],
}
CASES = [(k, more) for k in FREE for more in SETTINGS.get(k, [{}])]


class GraphBuilt(AssertionError):
    """Autograd kept a tensor for a backward pass."""


def refuse(tensor: torch.Tensor) -> None:
    raise GraphBuilt


@pytest.fixture
def no_graph():
    """Fail on the first tensor that autograd keeps in this process."""
    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda kept: kept):
        yield


def test_gradient_free__are_these() -> None:
    assert set(FREE) == {*SETTINGS, "random-search"}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("kind", "more"), CASES)
def test_run__builds_no_graph(kind, more, mode, tiny, tmp_path, no_graph) -> None:
    flags = {"algorithm": {"kind": kind, **more}, "mode": mode, "loss_samples": 40}
    if mode not in ALGORITHMS[kind].modes:
        pytest.skip(f"{kind} has no mode {mode}")
    ds = train(tiny(**flags, blocks="by_layer", budget={"steps": 3}), results=tmp_path)
    assert ds.attrs["status"] == "complete"
    assert ds.n_gradient_evals.values[-1] == 0


@pytest.mark.parametrize("model", ["lenet", "resnet8"])
def test_activity_perturbation__builds_no_graph_in_convolutions(
    model, tiny, tmp_path, no_graph
) -> None:
    flags = {"algorithm": {"kind": "activity-perturbation"}, "loss_samples": 8}
    flags |= {"model": {"name": model}, "blocks": "by_layer", "budget": {"steps": 1}}
    assert train(tiny(**flags), results=tmp_path).attrs["status"] == "complete"


def test_pipelined__builds_no_graph(tiny, tmp_path, no_graph) -> None:
    flags = {"algorithm": {"kind": "activity-perturbation"}, "loss_samples": 40}
    flags |= {"blocks": "by_layer", "budget": {"steps": 3}, "pipelined": True}
    assert train(tiny(**flags), results=tmp_path).attrs["status"] == "complete"


def test_back_propagation__does(tiny, tmp_path, no_graph) -> None:
    with pytest.raises(GraphBuilt):
        train(tiny(algorithm={"kind": "sgd"}), results=tmp_path)
