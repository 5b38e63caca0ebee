"""What the documentation says is so: settings, modules, variables, links."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from blocks import ALGORITHMS
from pipeline.config import load_config
from pipeline.schema import ATTRIBUTES, VARIABLES

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "data")),
]
ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \|", re.MULTILINE)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_algorithm_page__lists_every_setting_with_its_default(kind):
    algorithm = ALGORITHMS[kind]()
    documented = dict(ROW.findall(text_of(f"docs/algorithms/{kind}.md")))
    actual = {
        field.name: str(getattr(algorithm, field.name))
        for field in dataclasses.fields(algorithm)
        if field.name != "kind"
    }
    assert documented == actual


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_algorithm_page__names_the_runs_own_defaults(kind):
    page = text_of(f"docs/algorithms/{kind}.md")
    for name, value in ALGORITHMS[kind].defaults.items():
        assert f"`{name}={value}`" in page


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_readme__has_a_row_for_every_algorithm(kind):
    row = next(x for x in text_of("README.md").splitlines() if f"| `{kind}` |" in x)
    for mode in ALGORITHMS[kind].modes:
        assert mode in row
    assert f"docs/algorithms/{kind}.md" in row


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_page__every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


def test_results_page__names_every_variable_and_attribute():
    page = text_of("docs/results-format.md")
    words = set(re.findall(r"[a-z][a-z0-9_]+", page))
    assert set(VARIABLES) <= words
    assert {name for name, a in ATTRIBUTES.items() if a.required} <= words


def test_architecture_page__names_every_module_and_only_those_there_are():
    page = text_of("docs/architecture.md")
    listed = set(re.findall(r"`(\w+)\.py`", page))
    there = {p.stem for folder in ("blocks", "pipeline") for p in module_files(folder)}
    unlisted = {name for name in there - listed if not name.startswith("report")}
    assert unlisted <= {"__init__"}
    tests = {p.stem for p in (ROOT / "tests").rglob("test_*.py")}
    assert listed <= there | tests | {"__init__"}


def module_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def test_readme__the_python_lines_are_a_valid_run():
    blocks = re.findall(r"```python\n(.*?)```", text_of("README.md"), re.DOTALL)
    tree = ast.parse(blocks[0])
    overrides = next(
        ast.literal_eval(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "overrides"
    )
    assert load_config(overrides=overrides).mode == "async"
    assert len([line for line in blocks[0].splitlines() if line]) == 3
