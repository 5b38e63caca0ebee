import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import environment
from flows.artifacts import markdown_table

ROOT = Path(__file__).parents[2]


def test_prefect_defaults__set_only_what_is_not_set(monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.delenv("PREFECT_SERVER_ANALYTICS_ENABLED")
    environment.apply_prefect_defaults()
    assert os.environ["DO_NOT_TRACK"] == "0"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_prefect_defaults__reach_prefect_before_it_reads_its_settings():
    code = (
        "import flows, prefect.settings as s\n"
        "now = s.get_current_settings()\n"
        "print(now.server.analytics_enabled)\n"
        "print(now.server.ephemeral.startup_timeout_seconds)"
    )
    hidden = set(environment.PREFECT_DEFAULTS)
    clean = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["False", "120"]


def test_table__a_reason_of_several_lines_stays_in_its_cell():
    table = markdown_table([{"run": "a|b", "why": "first line\n| second"}])
    assert table.splitlines()[2:] == ["| a\\|b | first line \\| second |"]


def test_table__text_of_a_store_is_neither_html_nor_a_link():
    table = markdown_table([{"run": "<img src=x>", "why": "[a](javascript:b) `c\x1b"}])
    row = table.splitlines()[2]
    assert row == "| \\<img src=x\\> | \\[a\\](javascript:b) \\`c\\\\x1b |"


def test_home__is_the_variable_or_here(monkeypatch, tmp_path):
    monkeypatch.delenv("NDCAO_HOME", raising=False)
    assert environment.default_results() == Path("results")
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    assert environment.default_results() == tmp_path / "results"


@pytest.mark.parametrize("name", ["PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_API_URL"])
def test_keep_prefect_local__respects_the_users_choice(monkeypatch, tmp_path, name):
    for variable in ("PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    monkeypatch.setenv(name, "chosen")
    environment.keep_prefect_local()
    assert os.environ.get("PREFECT_HOME", "chosen") == "chosen"


def test_keep_prefect_local__uses_a_folder_beside_the_results(monkeypatch, tmp_path):
    for variable in ("PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", "")  # undone by monkeypatch
    environment.keep_prefect_local()
    assert os.environ["PREFECT_HOME"] == str(tmp_path.resolve() / ".prefect")
