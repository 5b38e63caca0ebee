"""Kept runs in plain values: where they lie, and how they ended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Unfinished(Exception):
    """What a Failed or Cancelled state carries: why, and what there is all the same.

    Prefect raises what such a state carries, and cannot raise a mapping.
    """

    def __init__(self, message: str, answer: dict[str, Any]) -> None:
        super().__init__(message)
        self.answer = answer


def answer_of(state: Any) -> Any:
    """Return a flow run's answer, whether it finished or not, or its exception."""
    found = state.result(raise_on_failure=False)
    return found.answer if isinstance(found, Unfinished) else found


def stores_of(runs: Iterable[str], results: str | Path) -> list[Path]:
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
