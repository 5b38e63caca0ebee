"""Kept runs in plain values: where they lie, and how they ended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def stores_of(runs: Iterable[str], results: Path) -> list[Path]:
    """Return the store of each run, named by id, by the start of its id, or by path.

    Raises
    ------
    FileNotFoundError, ValueError — if a name fits no run, or several.
    """
    from pipeline.runs import find_run, store_path

    return [store_path(*find_run(run, results)) for run in runs]


def diverged(line: dict[str, Any]) -> bool:
    """Whether the loss became non-finite; true of a stored run too (``exists``)."""
    return str(line.get("stop_reason", "")).startswith("diverged")
