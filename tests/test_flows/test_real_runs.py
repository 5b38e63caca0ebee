"""Real training through the command line and the flows: nothing is stubbed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from flows.cli import run

ROOT = Path(__file__).parents[2]
QUICK = (
    "--set=cluster.kind=in-process",
    "--set=blocks=by_unit:5",
    "--quiet",
    "--json",
)


def answer(capsys):
    return json.loads(capsys.readouterr().out)


def test_commands__train_evaluate_replay_export_compare(capsys, home):
    words = ("train", *QUICK, "--budget", "steps=12")
    assert run(words) == 0
    line = answer(capsys)
    assert line["status"] == "complete"
    assert Path(line["store"]).is_dir()
    assert run(words) == 0
    assert answer(capsys)["status"] == "exists"
    assert run(["evaluate", line["run_id"], "--json"]) == 0
    assert answer(capsys)["test_accuracy"] == line["test_accuracy"]
    assert run(["replay", line["run_id"], "--json"]) == 0
    assert answer(capsys)["params_sha256"] == line["params_sha256"]
    assert run(["export", "nd-cao-sync", "model.safetensors", "--json"]) == 0
    assert Path(answer(capsys)["path"]).stat().st_size > 0
    assert run([*words, "--seed", "1", "--init", "model.safetensors"]) == 0
    other = answer(capsys)
    assert run(["compare", line["run_id"], other["store"], "--json"]) == 0
    compared = answer(capsys)
    assert len(compared["runs"]) == 2
    assert "<html" in Path(compared["report"]).read_text(encoding="utf-8")
    assert run(["compare", line["run_id"], other["run_id"]]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert run(["runs", "--json"]) == 0
    assert {row["status"] for row in answer(capsys)["runs"]} == {"complete"}
    assert run(["runs"]) == 0
    assert line["run_id"] in capsys.readouterr().out


def test_compare__an_unknown_run_is_bad_input(capsys, home):
    assert run(["compare", "no-such-run"]) == 2
    assert "ndcao runs" in capsys.readouterr().err


@pytest.mark.cluster
def test_ctrl_c__of_the_whole_terminal_leaves_a_run_that_resumes_to_the_same_end(
    capsys, home
):
    """A terminal signals every process of the group, so Dask's workers too."""
    words = ["train", "--set=blocks=by_unit:5", "--budget", "steps=150", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for text in process.stderr:
        if "training  round 0/" in text:
            break
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    line = json.loads(out)
    assert line["status"] == "interrupted"
    assert f"ndcao resume {line['run_id']}" in errors
    assert "Traceback" not in errors
    assert run(["resume", line["run_id"], "--workers", "1", "--quiet", "--json"]) == 0
    resumed = answer(capsys)
    plain = ["train", *QUICK, "--budget", "steps=150", "--results", "other"]
    assert run(plain) == 0
    assert answer(capsys)["params_sha256"] == resumed["params_sha256"]


IN_A_TERMINAL = """
import fcntl, sys, termios
from flows.cli import run
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(run(sys.argv[1:]))
"""


def test_a_terminal_that_is_closed__leaves_a_run_that_can_be_resumed(capsys, home):
    words = ["train", "--set=cluster.kind=in-process", "--budget", "steps=1000000"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while b"training" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=60) == 130
    assert run(["runs", "--json"]) == 0
    (row,) = answer(capsys)["runs"]
    assert row["status"] == "interrupted"


@pytest.mark.cluster
@pytest.mark.slow
def test_flow__against_a_real_server_from_the_command_line(server_url, home):
    words = ["train", *QUICK, "--budget", "steps=12", "--mode", "async", "--flow"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": server_url,
            "PREFECT_HOME": str(home / ".prefect"),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["status"] == "complete"
    with httpx.Client(base_url=server_url, timeout=30) as api:
        runs = api.post("/flow_runs/filter", json={}).raise_for_status().json()
        found = [r for r in runs if r["name"] == "async-digits-s0"]
        assert len(found) == 1
        assert found[0]["state_type"] == "COMPLETED"
        assert {"async", "digits", "nd-cao"} <= set(found[0]["tags"])
        flow_id = str(UUID(found[0]["id"]))
        wanted = {"artifacts": {"flow_run_id": {"any_": [flow_id]}}}
        artifacts = api.post("/artifacts/filter", json=wanted).raise_for_status().json()
    kinds = {artifact["type"]: artifact for artifact in artifacts}
    assert set(kinds) == {"progress", "table", "markdown"}
    assert line["store"] in kinds["markdown"]["data"]
    assert "data:image/png;base64,iVBOR" in kinds["markdown"]["data"]
    assert line["params_sha256"] in kinds["table"]["data"]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.usefixtures("temporary_api")
def test_demo__ends_with_a_table_and_a_page_that_shows_both_modes(
    monkeypatch, capsys, home
):
    import flows.demo as demo

    monkeypatch.setenv("PREFECT_HOME", os.environ.get("PREFECT_HOME", str(home)))
    short = [{**method, "budget": {"steps": 10}} for method in demo.METHODS]
    monkeypatch.setattr(demo, "METHODS", tuple(short))
    assert run(["demo", "--seeds", "1", "--out", "page.html"]) == 0
    table = capsys.readouterr().out
    for word in ("nd-cao", "sync", "async", "sgd", "accuracy"):
        assert word in table
    page = (home / "page.html").read_text(encoding="utf-8")
    assert "async" in page
    assert "sgd" in page
    assert len(list((home / "results" / "demo").glob("*.zarr"))) == 3
