"""An ingested store in plain values: for the command, the flow and its artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any


def ingest_to_dict(
    name: str,
    *,
    source: Path | None = None,
    store: Path | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    unverified: bool = False,
    replace: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Ingest and return what was written, as JSON-ready values."""
    from pipeline.store import ingest

    info = ingest(
        name,
        source=source,
        store=store,
        limit_train=limit_train,
        limit_test=limit_test,
        unverified=unverified,
        replace=replace,
        progress=progress,
    )
    fields = dataclasses.asdict(info)
    return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}


def describe_store(info: dict[str, Any]) -> str:
    """Return the store's figures, one a line; its notes are for whoever shows them."""
    figures = {key: value for key, value in info.items() if key != "notes"}
    width = max(len(key) for key in figures)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in figures.items())
