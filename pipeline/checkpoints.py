"""Whose a checkpoint is: of which run, under which rules, and whether it is over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, validate_config
from pipeline.rules import difference
from pipeline.runs import is_older

OF_THE_CLUSTER = ("workers", "clock")  # in an id, but a run may go on elsewhere


def check_named(saved: dict[str, Any], run_id: str, path: Path) -> None:
    """Refuse a checkpoint that lies under another run's name.

    Raises
    ------
    ValueError — naming both.
    """
    if saved.get("run_id") != run_id:
        raise ValueError(
            f"`checkpoint` must be of the run that its file is named after; got "
            f"{saved.get('run_id')!r} in {path}. Give the file its own run's name, or "
            "remove it."
        )


def check_settings(saved: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Refuse a checkpoint whose settings are not those that its name stands for.

    Raises
    ------
    ValueError — naming the settings that differ.
    """
    theirs = validate_config(json.loads(saved["config"])).mathematics()
    ours = config.mathematics()
    names = sorted((set(theirs) | set(ours)) - set(OF_THE_CLUSTER))
    wrong = [name for name in names if theirs.get(name) != ours.get(name)]
    if wrong:
        raise ValueError(
            f"`checkpoint` must have the settings of its run; got another "
            f"`{wrong[0]}`, {theirs.get(wrong[0])!r}, in {path}. Remove the file, or "
            "train with --again."
        )


def check_rules(saved: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Refuse a checkpoint whose states follow other rules of arithmetic.

    Raises
    ------
    ValueError — naming the rules.
    """
    why = difference(config, saved.get("rules", ()))
    if why:
        raise ValueError(
            f"`checkpoint` must follow this version's rules of arithmetic; got {path} "
            f"of a version with others ({why}). Train the run anew, or finish it with "
            "the version that began it."
        )


def standing(store: Path) -> str:
    """Content hash of the run that lies at a path, as it says itself; "" if none does.

    A training remembers what stood there when it began, so that its checkpoint can be
    told from one that a later store has made needless.
    """
    if not store.exists():
        return ""
    try:
        text = (store / "zarr.json").read_text(encoding="utf-8")
        return str(json.loads(text)["attributes"]["content_sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return "damaged"


def is_over(saved: dict[str, Any], checkpoint: Path, store: Path) -> bool:
    """Whether a checkpoint's run was stored after it: what stands there is its end.

    Otherwise the run is on its way, beside an older store if it was begun with --again.
    A checkpoint of an older version does not say so; there the files' times decide.
    """
    now = standing(store)
    if "replaces" in saved:
        return bool(now) and now != saved["replaces"]
    return bool(now) and is_older(checkpoint, store)
