"""Joint probes in real runs: the form that is recorded is the form that is used."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import calibrate as calibration
from pipeline.calibrate import LONG_S, TURNS, calibrate
from pipeline.data_store import open_store
from pipeline.replay import replay
from pipeline.resolve import resolve
from pipeline.train import train

PROBES = {"algorithm": {"kind": "open-es", "population_size": 8, "rank": 1}}


@pytest.fixture
def clocked(monkeypatch):
    """Return a calibration in which every form takes the seconds that it is given."""

    def make(config, **seconds):
        now, scored = [0.0], []

        def score(_, form):
            scored.append(form)
            now[0] += seconds[form]

        monkeypatch.setattr(calibration, "_score", score)
        return *calibrate(config, clock=lambda: now[0]), scored

    return make


def test_calibrate__takes_the_fastest_form(tiny, clocked) -> None:
    config, timings, scored = clocked(
        tiny(**PROBES), pairs=0.3, bmm=0.1, vmap=0.2, loop=0.4
    )
    assert config.evaluation_form == "bmm"
    assert [t.form for t in timings] == ["bmm", "vmap", "pairs", "loop"]
    assert [t.values_per_s for t in timings] == pytest.approx([80, 40, 8 / 0.3, 20])
    assert len(scored) == 4 * (1 + TURNS)


def test_calibrate__times_a_long_score_once(tiny, clocked) -> None:
    _, timings, scored = clocked(
        tiny(**PROBES), pairs=0.1, bmm=0.2, vmap=0.3, loop=2 * LONG_S
    )
    assert scored.count("loop") == 1 + 1  # after the one that warms up
    assert timings[-1].seconds == pytest.approx(2 * LONG_S)


def test_calibrate__measures_real_scores(tiny) -> None:
    config, timings = calibrate(tiny(**PROBES))
    assert {t.form for t in timings} == {"pairs", "bmm", "vmap", "loop"}
    assert all(0 < t.seconds < 10 for t in timings)
    assert config.evaluation_form == timings[0].form


class Unmappable(nn.Module):
    """A network whose path hangs on its values, so that it cannot be mapped over."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        logits = self.out(x.flatten(1))
        return logits if float(logits.detach().sum()) > 0 else 2 * logits


def unmappable(image_shape, n_classes) -> nn.Module:
    return Unmappable()


def test_calibrate__says_why_a_form_is_left_out(tiny, monkeypatch) -> None:
    monkeypatch.setattr(
        "pipeline.context.build_model", lambda *_, **__: unmappable((1, 8, 8), 10)
    )
    config, timings = calibrate(tiny(**PROBES, blocks="all"))
    assert config.evaluation_form == "loop"
    assert [t.form for t in timings] == ["loop", "vmap"]
    assert math.isnan(timings[1].seconds)
    assert "item" in timings[1].why_not


def test_calibrate__changes_the_id_of_the_run(tiny) -> None:
    ids = {
        tiny(**PROBES, evaluation_form=form).run_id("digits", "c")
        for form in ("auto", "pairs", "loop")
    }
    assert len(ids) == 3


def test_calibrate__needs_joint_probes_and_an_open_form(tiny) -> None:
    with pytest.raises(ValueError, match="`--calibrate` must be used with joint"):
        calibrate(tiny())
    with pytest.raises(ValueError, match='`evaluation_form` must be "auto" with'):
        calibrate(tiny(**PROBES, evaluation_form="loop"))


def test_resolve__takes_the_form_from_the_table_and_keeps_one_that_is_set(tiny) -> None:
    data = open_store(tiny().dataset)
    assert resolve(tiny(**PROBES), data).evaluation_form == "pairs"
    assert resolve(tiny(), data).evaluation_form == "loop"
    chosen = tiny(**PROBES, evaluation_form="vmap")
    assert resolve(chosen, data).evaluation_form == "vmap"
    lenet = tiny(**PROBES, model={"name": "lenet"}, blocks="by_layer")
    assert resolve(lenet, data).evaluation_form == "loop"
    with pytest.raises(ValueError, match='`form` = "pairs" must be given'):
        resolve(lenet.model_copy(update={"evaluation_form": "pairs"}), data)


def name_of(algorithm) -> str:
    return "-".join(map(str, algorithm.values()))


RUNS = [
    PROBES["algorithm"],
    {"kind": "spsa", "pairs": 4, "rank": 2},
    {"kind": "nd-cao", "probes": 8, "rank": 1},
    {"kind": "nd-cao", "probes": 8, "rank": 1, "estimator": "antithetic"},
]


@pytest.mark.parametrize("algorithm", RUNS, ids=name_of)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_low_rank_run__is_recorded_and_replayed(tiny, tmp_path, algorithm, mode):
    ds = train(tiny(algorithm=algorithm, mode=mode), results=tmp_path)
    recorded = json.loads(ds.attrs["config"])
    assert recorded["evaluation_form"] == "pairs"
    assert ds.score_losses.shape[1] == 8
    assert (np.ptp(ds.score_losses.values, axis=1) > 0).all()
    again = replay(ds.attrs["store"])
    assert again["matches"]
    assert again["params_sha256"] == ds.attrs["params_sha256"]


def test_low_rank_run__has_the_losses_of_every_form(tiny, context_for) -> None:
    def score(form):
        context = context_for(tiny(**PROBES, evaluation_form=form))
        messages = {node: context.init_node(node)[1] for node in range(context.n_nodes)}
        scored = context.score(messages, [0] * context.n_nodes, [0, 1], 0)
        return torch.tensor(np.stack([shard.sums for shard in scored]))

    expected = score("loop")
    for form in ("pairs", "bmm", "vmap"):
        torch.testing.assert_close(score(form), expected, rtol=1e-5, atol=1e-4)
