"""``ndcao train --calibrate``: what it measures is shown, and recorded."""

import json

import pytest

from flows.cli import run
from pipeline.calibrate import Timing

TIMINGS = [Timing("bmm", 0.001, 8000.0), Timing("vmap", float("nan"), 0.0, "no rule")]


@pytest.fixture
def trained(stub, line, monkeypatch):
    """Configurations that the (stubbed) training was called with."""
    seen = []

    def train(config, **_):
        seen.append(config)
        return line

    stub("pipeline.train", train=train)
    stub("pipeline.runs", summary=dict)
    return seen


def test_calibrate__form_is_shown_and_set_before_the_run(
    trained, stub, line, home, capsys
):
    def calibrate(config):
        return config.model_copy(update={"evaluation_form": "bmm"}), TIMINGS

    stub("pipeline.calibrate", calibrate=calibrate)
    assert run(["train", "-a", "open-es", "--calibrate", "--json"]) == 0
    assert [config.evaluation_form for config in trained] == ["bmm"]
    shown = capsys.readouterr()
    assert json.loads(shown.out) == line
    for text in ("bmm", "8,000", "vmap", "no rule", "evaluation_form=bmm"):
        assert text in shown.err.replace("8000", "8,000")
    assert run(["train", "-a", "open-es", "--calibrate", "--json", "--quiet"]) == 0
    assert "bmm" not in capsys.readouterr().err


def test_calibrate__is_off_unless_asked_for(trained, home):
    assert run(["train", "-a", "open-es"]) == 0
    assert trained[0].evaluation_form == "auto"


def test_calibrate__without_joint_probes_is_refused(trained, home, capsys):
    assert run(["train", "--calibrate"]) == 2
    assert "`--calibrate` must be used with joint probes" in capsys.readouterr().err
    assert not trained
