"""Settings of a run from a file, flags and ``--set``, as one plain mapping."""

from __future__ import annotations

import re
from typing import Any

from blocks import ALGORITHMS
from pipeline.cluster_config import moved
from pipeline.marked_yaml import Marked, Place, read_value

__all__ = ["copied", "located", "merged", "override"]


def copied(data: Any) -> Any:
    """Return plain data with nothing shared: what an alias stands for is its own."""
    if isinstance(data, dict):
        return {key: copied(value) for key, value in data.items()}
    return [copied(value) for value in data] if isinstance(data, list) else data


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` merged into its sections.

    Another algorithm, another kind of cluster and another budget drop what was the old
    one's.
    """
    found = dict(base)
    for key, value in over.items():
        old = found.get(key)
        if key == "algorithm" and isinstance(old, str):
            old = {"kind": old}
        if key == "cluster" and isinstance(value, dict) and isinstance(old, dict):
            old = moved(old, {k: value[k] for k in ("kind",) if k in value})
        if isinstance(value, dict) and isinstance(old, dict) and key != "budget":
            changed = key == "algorithm" and value.get(
                "kind", old.get("kind")
            ) != old.get("kind")
            found[key] = value if changed else merged(old, value)
        else:
            found[key] = value
    return found


def override(data: dict[str, Any], text: str) -> None:
    """Set what a ``key.path=value`` says; the value is YAML.

    Raises
    ------
    ValueError — if it is no such text, or names no setting of the run's algorithm.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ValueError(
            f"`--set` must be key=value; got {text!r}. For example nd_cao.window=100."
        )
    path = key.strip().split(".")
    if not all(path):
        raise ValueError(
            f"`--set` must name a setting; got {text!r}. For example nd_cao.window=100."
        )
    value = read_value(raw, key)
    by_section = {name.replace("-", "_"): name for name in ALGORITHMS}
    algorithm = data.get("algorithm", "nd-cao")
    named = isinstance(algorithm, dict)
    kind = algorithm.get("kind", "nd-cao") if named else algorithm
    if path[0] in by_section:
        if by_section[path[0]] != kind:
            raise ValueError(
                f"`{key}` must belong to the run's algorithm {kind}; got a setting of "
                f"{by_section[path[0]]}. Pass --algorithm {by_section[path[0]]}."
            )
        path[0] = "algorithm"
    if path[0] == "algorithm" and not isinstance(algorithm, dict):
        data["algorithm"] = {"kind": kind}
    for part in path[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ValueError(
                f"`{key}` must name a setting inside a section; got {text!r}."
            )
        data = inner
    data[path[-1]] = value


def located(marked: Marked, data: Any, path: Place, text: str) -> str:
    """Put file and line before a text, if the file's own value is what is wrong."""
    quoted = re.match(r"^`([^`]+)` ", text)
    name = tuple(quoted.group(1).split(".")) if quoted else ()
    for place in ((*path, *name), path, name):
        if place in marked.lines and place:
            if _at(marked.data, place) != _at(data, place):
                break
            if quoted and name[-1] == str(place[-1]):
                text = text[quoted.end() :]
            return str(marked.problem(place, text))
    return text


def _at(data: Any, place: Place) -> Any:
    for part in place:
        if not isinstance(data, dict | list):
            return None
        if isinstance(data, dict):
            data = data.get(part)
        else:
            data = data[part] if part in range(len(data)) else None
    return data
