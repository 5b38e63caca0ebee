import json

import pytest

from flows.cli import run


def test_show__lists_every_run_and_what_is_left_out(capsys):
    assert run(["experiment", "show", "smoke"]) == 0
    text = capsys.readouterr().out
    for name in (
        "sync-digits-nd-cao-s0",
        "async-digits-nd-cao-s1",
        "sync-digits-sgd-s1",
    ):
        assert name in text
    assert "left out: algorithm sgd, mode async: sgd has no mode async" in text
    assert "6 runs: 3 arms, each with seeds 0, 1" in text


def test_show__json_has_the_whole_plan_and_runs_nothing(capsys, home):
    assert run(["experiment", "show", "sync-vs-async", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["n_runs"] == len(plan["runs"]) == 12
    assert plan["target"] == {"val_accuracy": 0.9}
    folders = {one["config"]["experiment"] for one in plan["runs"]}
    assert folders == {"sync-vs-async", "sync-vs-async.straggler"}
    assert list(home.iterdir()) == []


def test_show__a_wrong_file_is_one_line_a_problem_and_exit_code_2(capsys, home):
    (home / "x.yaml").write_text("name: x\nbase:\n  epochs: 3\nseed: 3\n")
    assert run(["experiment", "show", "x.yaml"]) == 2
    assert "x.yaml:4: seed: is not a setting" in capsys.readouterr().err
    (home / "x.yaml").write_text("name: x\nbase:\n  epochs: 3\n  mode: fast\n")
    assert run(["experiment", "show", "x.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["x.yaml:3", "x.yaml:4"]


def test_show__an_unknown_name_says_which_there_are(capsys):
    assert run(["experiment", "show", "nope"]) == 2
    assert "four-cases, smoke" in capsys.readouterr().err


def test_list__names_the_shipped_ones(capsys):
    assert run(["experiment", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["experiments"]
    assert [(one["name"], one["runs"]) for one in found] == [
        ("baselines", 57),
        ("four-cases", 48),
        ("smoke", 6),
        ("sync-vs-async", 12),
    ]
    assert run(["experiment", "list"]) == 0
    assert "smoke" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "list"])
def test_help__teaches_with_examples(command, capsys):
    assert run(["experiment", command, "--help"]) == 0
    assert f"$ ndcao experiment {command}" in capsys.readouterr().out


def test_help__of_the_group_lists_its_commands(capsys):
    assert run(["experiment"]) == 0
    text = capsys.readouterr().out
    assert "show" in text
    assert "list" in text
