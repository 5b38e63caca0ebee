import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import run

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "ingest",
    "train",
    "resume",
    "demo",
    "runs",
    "compare",
    "evaluate",
    "replay",
    "export",
    "algorithms",
    "doctor",
)
HEAVY = ("torch", "prefect", "distributed", "dask", "zarr", "xarray", "pandas")


def modules_after(*words):
    """The heavy modules that one command has imported, and how long it took."""
    code = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "from flows.cli import run\n"
        f"code = run({list(words)!r})\n"
        "took = time.perf_counter() - start\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "print(f'\\n{code} {took:.2f} ' + ' '.join(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    code, took, *heavy = done.stdout.strip().splitlines()[-1].split(" ")
    return int(code), float(took), [name for name in heavy if name]


@pytest.mark.parametrize("command", COMMANDS)
def test_help__every_command_teaches_with_examples(command, capsys):
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"$ ndcao {command}" in text


def test_help__lists_every_command(capsys):
    assert run([]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command in text
    assert run(["--help"]) == 0


def test_version__is_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ndcao ")


def test_start_up__help_imports_nothing_heavy():
    code, took, heavy = modules_after("train", "--help")
    assert (code, heavy) == (0, [])
    assert took < 2.0


def test_start_up__ingest_imports_neither_torch_nor_prefect(home):
    code, _, heavy = modules_after("ingest", "digits", "--json")
    assert code == 0
    assert not {"torch", "prefect", "distributed"} & set(heavy)


@pytest.mark.parametrize(
    "words",
    [
        ["tarin"],
        ["train", "--hiden", "3"],
        ["train", "--budget", "fish=2"],
        ["train", "--workers", "0"],
        ["train", "--delay", "2"],
        ["train", "--algorithm", "genetic"],
        ["train", "--config", "missing.yaml"],
        ["train", "--set", "nothing"],
        ["train", "--address", "a", "--scheduler-file", "b"],
        ["ingest"],
        ["ingest", "fish"],
        ["ingest", "image-folder", "--from", "missing"],
        ["compare"],
        ["evaluate", "no-such-run"],
        ["resume", "no-such-run"],
        ["replay", "no-such-run"],
        ["export", "no-such-run", "model.safetensors"],
        ["train", "--dataset", "no-such-data"],
    ],
)
def test_bad_input__one_line_on_stderr_and_exit_code_2(words, capsys, home):
    assert run(words) == 2
    captured = capsys.readouterr()
    errors = [x for x in captured.err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert not list(home.iterdir()) or words[0] == "train"


def test_usage_errors__point_at_the_commands_help(capsys):
    run(["train", "--hiden", "3"])
    assert "See `ndcao train --help`." in capsys.readouterr().err


def test_debug__shows_the_traceback_wherever_it_stands(capsys, home):
    for words in (["--debug", "ingest", "fish"], ["ingest", "fish", "--debug"]):
        assert run(words) == 2
        captured = capsys.readouterr().err
        assert "Traceback" in captured
        assert captured.strip().splitlines()[-1].startswith("error: ")


def test_ingest__prints_figures_or_one_json_line(capsys, home):
    assert run(["ingest", "digits", "--limit-train", "200", "--json"]) == 0
    captured = capsys.readouterr()
    info = json.loads(captured.out)
    assert info["n_train"] + info["n_val"] == 200
    assert Path(info["path"]).is_dir()
    assert run(["ingest", "digits", "--store", "other.zarr"]) == 0
    assert "n_test" in capsys.readouterr().out
    assert Path("other.zarr").is_dir()


def test_algorithms__lists_the_registry(capsys):
    from blocks import ALGORITHMS

    assert run(["algorithms", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["algorithms"]
    assert [row["algorithm"] for row in rows] == list(ALGORITHMS)
    assert run(["algorithms"]) == 0
    assert "nd-cao" in capsys.readouterr().out


@pytest.fixture
def calls(stub, line):
    """Arguments of the (stubbed) training calls; ``calls.line`` is what they return."""

    class Calls(list):
        pass

    seen = Calls()
    seen.line = line

    def train(config, **rest):
        seen.append((config, rest))
        return seen.line

    def resume(run, **rest):
        seen.append((run, rest))
        return seen.line

    def replay(run, **rest):
        seen.append((run, rest))
        return {**seen.line, "matches": seen.line["status"] == "complete"}

    stub("pipeline.train", train=train, resume=resume)
    stub("pipeline.replay", replay=replay)
    stub("pipeline.runs", summary=dict)
    return seen


def test_train__json_is_the_only_line_on_stdout(calls, capsys, home):
    words = ["train", "--json", "--seed", "3", "--budget", "steps=2", "--again"]
    assert run([*words, "--results", "kept"]) == 0
    assert json.loads(capsys.readouterr().out) == calls.line
    config, rest = calls[0]
    assert (config.seed, config.budget.steps) == (3, 2)
    assert rest["results"] == Path("kept")
    assert rest["again"] is True


def test_train__results_default_to_the_home_folder(calls, home):
    assert run(["train"]) == 0
    assert calls[0][1]["results"] == home / "results"


def test_train__existing_run_says_so(calls, capsys, home):
    calls.line["status"] = "exists"
    assert run(["train"]) == 0
    assert "--again" in capsys.readouterr().err


def test_train__diverged_run_exits_1_and_still_prints_its_line(calls, capsys, home):
    calls.line.update(status="diverged", stop_reason="diverged: non-finite loss")
    assert run(["train", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "diverged"
    assert "diverged: non-finite loss" in captured.err


def test_train__interrupt_says_how_to_resume_and_exits_130(stub, line, capsys, home):
    def train(config, stop, **rest):
        os.kill(os.getpid(), signal.SIGINT)
        # Another thread may take the signal; Python then runs the handler in this one,
        # between two waits.
        assert any(stop.wait(timeout=0.05) for _ in range(100))
        return {**line, "status": "interrupted", "stop_reason": "interrupted"}

    stub("pipeline.train", train=train)
    stub("pipeline.runs", summary=dict)
    assert run(["train"]) == 130
    assert f"ndcao resume {line['run_id']}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("no workers came."), 1), (ValueError("bad."), 2)]
)
def test_train__errors_keep_their_message(stub, capsys, home, error, code):
    def train(config, **rest):
        raise error

    stub("pipeline.train", train=train)
    stub("pipeline.runs", summary=dict)
    assert run(["train", "--quiet"]) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_resume__passes_the_run_on(calls, capsys, home):
    assert run(["resume", "nd-cao-sync", "--json", "--results", "kept"]) == 0
    assert calls[0][0] == "nd-cao-sync"
    assert calls[0][1]["results"] == Path("kept")


@pytest.mark.parametrize(("status", "code"), [("complete", 0), ("different", 1)])
def test_replay__exit_code_tells_whether_it_matches(calls, capsys, home, status, code):
    calls.line["status"] = status
    assert run(["replay", "nd-cao-async", "--json"]) == code
    captured = capsys.readouterr()
    assert json.loads(captured.out)["matches"] is (code == 0)
    assert ("error: " in captured.err) is (code == 1)


def test_runs__an_empty_folder_is_no_error(capsys, home):
    pytest.importorskip("pipeline.runs")
    assert run(["runs"]) == 0
    assert "ndcao train" in capsys.readouterr().err
    assert run(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == []


def test_broken_pipe__ends_quietly(home):
    done = subprocess.run(
        f"{sys.executable} -m flows.cli train --help | head -1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""


def test_console_script__ctrl_c_during_ingest_leaves_no_store(home):
    code = (
        "import signal, time, flows.stores as s\n"
        # a shell that runs us in the background has it ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def slow(*a, **k): print('ready', flush=True); time.sleep(60)\n"
        "s.ingest_to_dict = slow\n"
        "import sys; from flows.cli import run; sys.exit(run(['ingest', 'digits']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "error: interrupted.\n"
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["export", "", "x.safetensors"], "an argument"),
        (["evaluate", ""], "an argument"),
        (["resume", " "], "an argument"),
        (["replay", ""], "an argument"),
        (["train", "--dataset", ""], "`--dataset`"),
        (["train", "-d", ""], "`-d`"),
        (["train", "--results="], "`--results`"),
        (["ingest", "digits", "--store", ""], "`--store`"),
        (["experiment", "run", ""], "an argument"),
        (["compare", "one", "", "--out", "x.html"], "an argument"),
    ],
)
def test_empty_name__of_an_unset_variable_is_refused(words, named, capsys):
    assert run(words) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"error: {named} must not be empty" in told


def test_results__a_tilde_is_the_home_even_after_an_equals_sign(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["runs", "--results=~/r", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == str(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["export", "RUN", "mynet.py"], "must end with .safetensors"),
        (["export", "RUN", "OTHER.zarr/zarr.json"], "must end with .safetensors"),
        (["compare", "RUN", "--out", "OTHER.zarr/zarr.json"], "must end with .html"),
        (["compare", "RUN", "--out", "OTHER.zarr/x.html"], "inside a Zarr store"),
        (["compare", "RUN", "--out", "note.html"], "must not replace"),
        (["compare", "RUN", "--export", "data.csv"], "must not replace"),
        (["compare", "RUN", "--figures", "OTHER.zarr/x"], "inside a Zarr store"),
        (["demo", "--out", "note.html"], "must not replace"),
        (["experiment", "run", "smoke", "--out", "note.html"], "must not replace"),
    ],
)
def test_outputs__nothing_else_is_replaced_and_nothing_is_started(
    words, what, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OTHER.zarr").mkdir()
    files = ["mynet.py", "OTHER.zarr/zarr.json", "note.html", "data.csv"]
    for file in files:
        (tmp_path / file).write_text("precious")
    assert run(words) == 2
    assert what in " ".join(capsys.readouterr().err.split())
    assert {(tmp_path / file).read_text() for file in files} == {"precious"}


def test_resume__takes_the_cluster_of_a_file_and_flags_go_over_it(
    tmp_path, monkeypatch, capsys
):
    given = {}

    def resumed(run, **named):
        given.update(named)
        raise ValueError("enough")

    monkeypatch.setattr("pipeline.train.resume", resumed)
    file = tmp_path / "run.yaml"
    file.write_text(
        "seed: 3\ncluster: {kind: jobqueue, system: slurm, options: {cores: 2}}\n"
    )
    assert run(["resume", "x", "--config", str(file), "--workers", "3"]) == 2
    assert "enough" in capsys.readouterr().err
    assert given["cluster"] == {
        **{"kind": "jobqueue", "system": "slurm"},
        **{"options": {"cores": 2}, "workers": 3},
    }
