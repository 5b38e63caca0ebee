"""The configuration fields in which runs differ, as columns over ``run``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["PREFIX", "common_fields", "field_attributes", "varying_fields"]

PREFIX = "config."
#: Fields that other coordinates show, or that only say where a run ran.
_NOT_COMPARED = frozenset(
    {
        "algorithm.kind",
        "mode",
        "dataset",
        "model.name",
        "blocks",
        "seed",
        "experiment",
        "cluster.address",
        "cluster.scheduler_file",
    }
)


def varying_fields(configs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return ``config.<key>`` -> (run,) values of the fields that vary.

    Nested sections are joined by dots. Numbers stay numbers, NaN where a run has no
    such field; all else is text, empty where a run has none.

    Parameters
    ----------
    configs : the whole configuration of each run.
    """
    flats = [_flatten(config) for config in configs]
    keys = dict.fromkeys(
        key for flat in flats for key in flat if key not in _NOT_COMPARED
    )
    out: dict[str, np.ndarray] = {}
    for key in keys:
        if any(other.startswith(f"{key}.") for other in keys):
            continue  # a section that is empty in some runs: its fields are there
        values = [flat.get(key) for flat in flats]
        if any(value != values[0] for value in values):
            out[f"{PREFIX}{key}"] = _column(values)
    return out


def common_fields(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return key -> value, as text, of the fields that are the same in all runs.

    Parameters
    ----------
    configs : the whole configuration of each run.
    """
    first, *others = (_flatten(config) for config in configs)
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def field_attributes(name: str, values: np.ndarray) -> dict[str, str]:
    """Return the ``long_name`` of a column of `varying_fields`, and a number's units.

    Names that end in ``seconds`` or ``_s`` are in s, in ``bytes`` in B.
    """
    attrs = {"long_name": f"configuration field {name.removeprefix(PREFIX)}"}
    if values.dtype.kind == "f":
        last = name.rpartition(".")[2]
        seconds = last.endswith(("seconds", "_s")) or ".delays." in name
        attrs["units"] = "s" if seconds else "B" if last.endswith("bytes") else "1"
    return attrs


def _column(values: Sequence[Any]) -> np.ndarray:
    if all(
        v is None or (isinstance(v, int | float) and not isinstance(v, bool))
        for v in values
    ):
        return np.array([np.nan if v is None else float(v) for v in values])
    texts = (
        "" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values
    )
    return np.array(list(texts))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
