import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flows import console
from flows.tables import RUN_COLUMNS, comparison_table, run_table
from pipeline.progress import Progress


def progress(**changed):
    values = {
        "phase": "train",
        "round": 30,
        "n_rounds": 120,
        "version": 30,
        "loss": 1.5,
        "test_accuracy": None,
        "val_accuracy": 0.25,
        "versions_per_s": 40.0,
        "mean_staleness": 1.5,
        "n_workers": 2,
        "elapsed_s": 3.0,
        "dashboard": None,
    }
    return Progress(**{**values, **changed})


def test_print_json__one_line_of_valid_json_whatever_the_values(capsys):
    console.print_json(
        {
            "a": math.inf,
            "b": np.float32(0.5),
            "c": np.int64(3),
            "d": Path("x"),
            "e": (math.nan, True, None),
        }
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out) == {
        "a": None,
        "b": 0.5,
        "c": 3,
        "d": "x",
        "e": [None, True, None],
    }


def test_describe_progress__has_every_figure():
    text = console.describe_progress(progress())
    for figure in ("30/120", "1.5000", "0.2500", "40.0", "1.50", "workers 2", "3 s"):
        assert figure in text
    assert "0.7500" in console.describe_progress(progress(test_accuracy=0.75))


def test_describe_progress__without_accuracy_or_known_length():
    text = console.describe_progress(progress(val_accuracy=None, n_rounds=0))
    assert "accuracy –" in text
    assert "round 30  " in text


def test_describe_progress__what_is_not_known_yet_is_a_dash():
    text = console.describe_progress(Progress(phase="starting"))
    assert "nan" not in text
    assert "loss –" in text


def test_plain_progress__few_lines_on_stderr_only(capsys):
    with console.progress_display("run") as show:
        for step in range(1000):
            show(progress(round=step))
        show(progress(phase="evaluate"))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("run: train")
    assert lines[1].startswith("run: evaluate")


def test_quiet_progress__prints_nothing(capsys):
    with console.progress_display("run", quiet=True) as show:
        show(progress())
    assert capsys.readouterr() == ("", "")


def test_live_progress__shows_the_figures_on_a_terminal(monkeypatch):
    import io

    from rich.console import Console

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(console, "err", terminal)
    with console.progress_display("run") as show:
        show(progress(dashboard="http://127.0.0.1:8787/status"))
        show(progress(n_rounds=0))
    drawn = screen.getvalue()
    for figure in ("run", "30/120", "versions/s", "staleness", "workers", "8787"):
        assert figure in drawn


def test_print_error__one_line_and_no_markup(capsys):
    console.print_error("`x` must be [bold]; got " + "long " * 60)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "[bold]" in captured.err


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.123456, "0.1235"),
        (12345, "12,345"),
        (np.float64(2.0), "2"),
        (True, "True"),
        ("text", "text"),
    ],
)
def test_format_value__short_and_readable(value, shown):
    assert console.format_value(value) == shown


def test_make_table__numbers_are_right_aligned():
    table = console.make_table(["name", "n"], [("a", 1), ("b", 22)])
    assert [column.justify for column in table.columns] == ["left", "right"]
    assert table.row_count == 2


ESCAPES = "\x1b[2Jx\x9b31m\u202eevil\r\x07\udcff[bold]"


def test_terminal__nothing_of_a_store_is_obeyed(capsys):
    console.print_error(ESCAPES)
    console.note(ESCAPES)
    console.say(ESCAPES)
    console.out.print(console.make_table([ESCAPES], [[ESCAPES + "\n"]], ESCAPES))
    console.out.print(console.make_fields({ESCAPES: ESCAPES}))
    row = dict.fromkeys(("run_id", "status", "experiment", "stop_reason"), ESCAPES)
    numbers = dict.fromkeys(RUN_COLUMNS, 1.0)
    console.out.print(run_table([numbers | row, numbers | row | {"experiment": "b"}]))
    console.out.print(comparison_table([{"algorithm": ESCAPES, "dataset": ESCAPES}]))
    console.print_json({"run_id": ESCAPES})
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert not set(shown) & set("\x1b\x9b\u202e\r\x07\udcff")
    assert "\\x1b[2Jx\\x9b31m\\u202eevil\\r\\x07\\udcff[bold]" in shown


def test_stdout_for_json__holds_the_line_alone_whoever_prints(capfd) -> None:
    with console.stdout_for_json(True):
        print("the user's factory")
        os.write(1, b"a library in C\n")
        subprocess.run([sys.executable, "-c", "print('a worker')"], check=True)
        console.print_json({"a": 1})
    print("afterwards")
    found = capfd.readouterr()
    assert found.out == '{"a": 1}\nafterwards\n'
    for text in ("the user's factory", "a library in C", "a worker"):
        assert text in found.err


def test_stdout_for_json__is_given_back_after_an_error(capfd) -> None:
    with pytest.raises(KeyError), console.stdout_for_json(True):
        raise KeyError
    with console.stdout_for_json(False):
        print("plain")
    assert capfd.readouterr().out == "plain\n"
