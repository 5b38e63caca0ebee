"""Imports only go down (flows, pipeline, blocks) and name declared dependencies."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("blocks", "pipeline", "flows")
BLOCKS_MAY_IMPORT = {"numpy", "torch", "blocks"}
# Imported inside the branch that needs them, with advice where they are missing.
OPTIONAL = {"dask_cuda", "dask_jobqueue"}


def imported(source: str) -> set[str]:
    """Return the top-level names of all imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func)
            first = node.args[0]
            if function.endswith(("import_module", "__import__")) and isinstance(
                first, ast.Constant
            ):
                names.add(str(first.value).split(".")[0])
    return names


def third_party(names: set[str]) -> set[str]:
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def all_modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from modules(package)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os.path, torch.nn as nn", {"os", "torch"}),
        ("from pipeline.runs import list_runs", {"pipeline"}),
        ("def f():\n    import prefect", {"prefect"}),
        ("if TYPE_CHECKING:\n    from flows import cli", {"flows"}),
        ("from . import sibling", {"."}),
        ("importlib.import_module('dask.array')", {"dask"}),
    ],
)
def test_scan__sees_an_import_wherever_it_stands(
    source: str, expected: set[str]
) -> None:
    assert imported(source) == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_package__has_modules_to_scan(package: str) -> None:
    assert (ROOT / package / "__init__.py") in modules(package)


@pytest.mark.parametrize("path", modules("blocks"), ids=relative)
def test_blocks__import_only_the_standard_library_numpy_and_torch(path: Path) -> None:
    names = imported(path.read_text(encoding="utf-8")) - set(sys.stdlib_module_names)
    assert names <= BLOCKS_MAY_IMPORT


@pytest.mark.parametrize("path", modules("pipeline"), ids=relative)
def test_pipeline__knows_neither_prefect_nor_flows(path: Path) -> None:
    assert not imported(path.read_text(encoding="utf-8")) & {"prefect", "flows", "."}


@pytest.mark.parametrize("path", list(all_modules()), ids=relative)
def test_package__imports_nothing_from_tests_or_benchmarks(path: Path) -> None:
    assert not imported(path.read_text(encoding="utf-8")) & {"tests", "benchmarks"}


def test_third_party_imports__are_declared_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(Requirement(d).name) for d in project["dependencies"]}
    distributions = packages_distributions()
    undeclared: dict[str, list[str]] = {}
    for path in all_modules():
        names = third_party(imported(path.read_text(encoding="utf-8"))) - OPTIONAL
        for name in names:
            owners = {canonicalize_name(d) for d in distributions.get(name, [name])}
            if not owners & declared:
                undeclared.setdefault(name, []).append(relative(path))
    assert not undeclared


def test_source__names_no_path_of_one_machine() -> None:
    pattern = re.compile(r"/(?:tmp|work|root|home)/[A-Za-z]")
    found = [
        f"{relative(path)}:{number}"
        for path in all_modules()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found
