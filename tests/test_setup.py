"""What the set-up files promise one another, and what the pages say of them."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
ENVIRONMENT: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text())
# `gpu` is left to the CUDA on the machine: an exact set cannot suit every driver.
UNPINNED_EXTRAS = {"gpu"}


def conda_requirements() -> list[str]:
    return [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]


def pip_lines() -> list[str]:
    sections = [d for d in ENVIRONMENT["dependencies"] if isinstance(d, dict)]
    return [line for section in sections for line in section["pip"]]


def conda_name(requirement: str) -> str:
    return canonicalize_name(re.split(r"[\s=<>!~]", requirement, maxsplit=1)[0])


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, Version]:
    pairs = (line.split("==") for line in constraint_lines())
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def declared_dependencies() -> list[Requirement]:
    lines = [*PROJECT["dependencies"]]
    for extra, requirements in PROJECT["optional-dependencies"].items():
        if extra not in UNPINNED_EXTRAS:
            lines += requirements
    return [Requirement(line) for line in lines]


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def make_commands(text: str) -> set[str]:
    """Return the targets of all `make TARGET` in code spans and code blocks."""
    code = re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)
    return {t for part in code for t in re.findall(r"\bmake ([a-z][a-z-]*)", part)}


def test_environment__python_is_within_the_range_of_pyproject() -> None:
    python = [d for d in conda_requirements() if conda_name(d) == "python"]
    assert len(python) == 1
    version = re.fullmatch(r"python\s*={1,2}\s*(\d+\.\d+)(?:\.\*)?", python[0])
    assert version, f"{python[0]!r} names no single Python minor version"
    supported = SpecifierSet(PROJECT["requires-python"])
    assert supported.contains(version[1])
    assert supported.contains(f"{version[1]}.99")


def test_environment__installs_this_project_under_the_constraints() -> None:
    assert {conda_name(d) for d in conda_requirements()} == {"python", "pip"}
    assert pip_lines() == ["-c constraints.txt", "-e ."]
    assert ENVIRONMENT["name"] == PROJECT["name"]


def test_environment__nothing_is_pinned_twice() -> None:
    names = [conda_name(d) for d in conda_requirements()]
    names += [conda_name(line) for line in pip_lines() if not line.startswith("-")]
    names += [canonicalize_name(line.split("==")[0]) for line in constraint_lines()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("line", constraint_lines())
def test_constraints__every_line_is_one_exact_public_version(line: str) -> None:
    requirement = Requirement(line)
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    assert requirement.url is None
    assert requirement.marker is None
    assert Version(specifier.version).local is None, "a local build is on no index"


def test_constraints__leave_out_the_project_and_the_installer() -> None:
    assert not pins().keys() & {PROJECT["name"], "pip", "setuptools", "wheel"}


@pytest.mark.parametrize("dependency", declared_dependencies(), ids=lambda d: d.name)
def test_constraints__pin_every_dependency_inside_its_range(
    dependency: Requirement,
) -> None:
    pin = pins().get(canonicalize_name(dependency.name))
    assert pin is not None, f"{dependency.name} has no pin"
    assert dependency.specifier.contains(pin)


def test_pyproject__every_dependency_has_a_lower_bound() -> None:
    for dependency in declared_dependencies():
        operators = {s.operator for s in dependency.specifier}
        assert operators & {">=", "==", "~="}, f"{dependency} accepts any old release"


def test_fastapi__stays_below_the_release_that_breaks_prefect_deployments() -> None:
    (fastapi,) = (d for d in declared_dependencies() if d.name == "fastapi")
    assert fastapi.specifier.contains("0.150.0")
    assert not fastapi.specifier.contains("0.151.0")


def test_documents__every_make_command_is_a_target_of_the_makefile() -> None:
    named = {doc: make_commands(doc.read_text(encoding="utf-8")) for doc in documents()}
    unknown = {str(doc): some - make_targets() for doc, some in named.items()}
    assert not {doc: some for doc, some in unknown.items() if some}


def test_makefile__has_the_agreed_targets() -> None:
    agreed = {"help", "install", "demo", "test", "lint", "bench", "clean"}
    assert agreed <= make_targets()


def test_readme__names_the_commands_of_a_fresh_clone() -> None:
    commands = make_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"demo", "test"} <= commands


def test_licences__the_page_covers_every_pinned_package() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = {canonicalize_name(n) for n in re.findall(r"[A-Za-z0-9][\w.-]*", page)}
    assert sorted(pins().keys() - listed) == []


def test_ci__is_executable_and_runs_lint_and_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines.index("make lint") < lines.index("make test")
