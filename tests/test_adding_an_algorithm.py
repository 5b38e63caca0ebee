"""The page on adding an algorithm, followed to the letter in a copy of ``blocks``."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-an-algorithm.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


FILE, IMPORT, ENTRY, TEST = fenced("python")
(COMMAND,) = fenced("sh")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Return a folder whose ``blocks`` has the new file and the two lines."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "blocks", folder / "blocks", ignore=ignored)
    (folder / "blocks" / "gossip_sgd.py").write_text(FILE, encoding="utf-8")
    registry = folder / "blocks" / "__init__.py"
    text = registry.read_text(encoding="utf-8")
    first = "from blocks.layerwise_async_sgd"
    assert text.count(first) == 1
    assert text.endswith("}\n")
    text = text.replace(first, IMPORT + first).removesuffix("}\n") + ENTRY + "}\n"
    registry.write_text(text, encoding="utf-8")
    (folder / "test_gossip_sgd.py").write_text(TEST, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return folder


def call(folder: Path, *words: str) -> str:
    """What Python answers in the folder, whose ``blocks`` goes before the real one."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "NDCAO_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_file__is_short_and_the_registry_takes_two_lines():
    assert len(FILE.splitlines()) < 60
    assert IMPORT.count("\n") == ENTRY.count("\n") == 1
    assert len([line for line in TEST.splitlines() if line]) <= 8


def test_page__names_every_check():
    from blocks.conformance import CHECKS

    rows = re.findall(r"^\| `(check_\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [check.__name__ for check in CHECKS]


def test_suite__of_the_page_passes_for_its_algorithm(checkout):
    answer = call(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert " passed" in answer


def test_command__of_the_page_trains_its_algorithm(checkout):
    program, *words = shlex.split(COMMAND)
    assert program == "ndcao"
    answer = json.loads(call(checkout, "-m", "flows.cli", *words, "--quiet", "--json"))
    assert answer["run_id"].startswith("gossip-sgd-sync-digits")
    assert answer["status"] == "complete"
    assert answer["test_accuracy"] > 0.5


def test_exchange__of_the_page_keeps_the_mean_of_all_replicas(checkout):
    told = call(
        checkout,
        "-c",
        "from blocks.gossip_sgd import GossipSGD\n"
        "from blocks.team import Team\n"
        "team = Team.of(5, 12, seed=3)\n"
        "for step in range(20):\n"
        "    heard = [GossipSGD().senders(n, team, step, ()) for n in range(5)]\n"
        "    assert sorted(map(len, heard)) == [0, 1, 1, 1, 1], heard\n"
        "    for node, other in enumerate(heard):\n"
        "        assert all(heard[peer] == (node,) for peer in other), heard\n"
        "print('kept')\n",
    )
    assert told == "kept\n"
