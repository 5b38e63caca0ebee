"""The axes of an experiment's grid: their values, names, and what they apply to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from blocks import ALGORITHMS
from pipeline.layers import RESERVED, SECTIONS, Layer, is_setting
from pipeline.marked_yaml import Place

PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
NO_NAME = "none"  # a value of this name is not in the names of runs
_OF_BLOCKS = {"blocks", "custom_blocks"}
_OF_REPLICAS = {"nodes", "machines", "latency_s", "skew"}


@dataclass(frozen=True, slots=True)
class Value:
    """One value of an axis: its name, what it sets, and the value as written."""

    label: str
    layer: Layer
    raw: Any


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: a setting with its values, or free names for groups of settings."""

    name: str
    values: tuple[Value, ...]
    free: bool

    def applies(self, kind: str) -> bool:
        """Whether the axis says anything to an algorithm; unknown ones: yes."""
        head = self.name.split(".")[0]
        if not self.free and head in SECTIONS and "." in self.name:
            return SECTIONS[head] == kind
        if self.free or kind not in ALGORITHMS:
            return True
        algorithm = ALGORITHMS[kind]()
        if head in _OF_BLOCKS:
            return bool(algorithm.blockwise)
        if head == "skew" and getattr(algorithm, "data", "shard") != "shard":
            return False
        return head not in _OF_REPLICAS or "nodes" in algorithm.defaults

    def sets(self, keys: set[str]) -> bool:
        """Whether some value of the axis sets one of ``keys``."""
        return any(k.split(".")[0] in keys for v in self.values for k in v.layer.places)

    def chosen(self, wanted: Any) -> list[Value]:
        """Return the values that an ``exclude`` rule means: by name or as written."""
        wanted = wanted if isinstance(wanted, list) else [wanted]
        return [
            value
            for value in self.values
            for one in wanted
            if one in (value.label, value.raw)
        ]


def read_axes(
    grid: Mapping[str, Any], problems: list[tuple[Place, str]]
) -> tuple[Axis, ...]:
    """Return the axes of a grid; what is wrong with them goes to ``problems``."""
    axes = []
    for name, content in grid.items():
        place: Place = ("grid", name)
        wrong = _wrong_axis(name, content)
        if wrong:
            problems.append((place, wrong))
            continue
        free = not is_setting(name)
        values = tuple(_read_values(name, content, free, problems))
        axes.append(Axis(name, values, free))
        problems.extend(_same_labels(name, content, values))
    return tuple(axes)


def _wrong_axis(name: str, content: Any) -> str:
    if name in RESERVED:
        return f"must not be an axis; every arm has the same `{RESERVED[name]}`."
    if not isinstance(content, list | dict):
        return (
            "must be a list of values, or a mapping of names to values; got "
            f"{content!r}. Write [{content}]."
        )
    if not content:
        return "must have at least one value; got none. Add one or drop the axis."
    if isinstance(content, list) and not is_setting(name):
        return (
            "must be a setting of a run to have a list of values; there is none of "
            "this name. Check its spelling, or map names to groups of settings."
        )
    return ""


def _read_values(
    name: str,
    content: list[Any] | dict[Any, Any],
    free: bool,
    problems: list[tuple[Place, str]],
) -> Iterator[Value]:
    if isinstance(content, list):
        for index, raw in enumerate(content):
            layer = Layer({name: raw}, {name: ("grid", name, index)})
            yield Value(label_of(name, raw), layer, raw)
        return
    for label, raw in content.items():
        place: Place = ("grid", name, label)
        if not isinstance(label, str) or not PLAIN.match(label):
            problems.append((place, wrong_label(label)))
        elif not free:
            yield Value(label, Layer({name: raw}, {name: place}), raw)
        elif raw is None or isinstance(raw, dict):
            yield Value(label, Layer.at(place, plain_keys(place, raw, problems)), raw)
        else:
            rule = f"must be a mapping of settings; got {raw!r}. Write {{key: value}}."
            problems.append((place, rule))


def _same_labels(
    name: str, content: Any, values: Sequence[Value]
) -> Iterator[tuple[Place, str]]:
    first: dict[str, Any] = {}
    if isinstance(content, dict):
        return
    for index, value in enumerate(values):
        if value.label in first:
            yield (
                ("grid", name, index),
                f"must differ from the values before it; got {value.raw!r}, named "
                f"{value.label} as is number {first[value.label]}. Remove it, or map "
                "names to values.",
            )
        first.setdefault(value.label, index)


def wrong_label(label: Any) -> str:
    """What is wrong with a name that is to be part of the names of runs."""
    return (
        "must be named with letters, digits, '-', '_' and '.', as it is part of the "
        f"names of runs; got {label!r}. Rename it."
    )


def plain_keys(
    place: Place, settings: Any, problems: list[tuple[Place, str]]
) -> dict[str, Any]:
    """Return the settings whose keys are words; the others go to ``problems``."""
    kept = {}
    for key, value in (settings or {}).items():
        if isinstance(key, str):
            kept[key] = value
        else:
            problems.append(((*place, key), f"must be a setting; got {key!r}."))
    return kept


def label_of(name: str, value: Any) -> str:
    """Return the name of a value that was given none: ``by_unit-9``, ``nodes-4``."""
    leaf = name.split(".")[-1]
    if isinstance(value, str):
        is_path = leaf == "dataset" and (value.endswith(".zarr") or "/" in value)
        return _slug(PurePath(value).stem if is_path else value) or leaf
    if isinstance(value, dict) and isinstance(
        value.get("kind", value.get("name")), str
    ):
        head = "kind" if "kind" in value else "name"
        rest = {key: v for key, v in value.items() if key != head}
        return "-".join(filter(None, (_slug(value[head]), _words(rest))))
    return f"{_slug(leaf)}-{_words(value)}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(f"{_slug(str(k))}-{_words(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "x".join(_words(item) for item in value) or NO_NAME
    if value is None:
        return NO_NAME
    return _slug(f"{value:g}" if isinstance(value, float) else str(value))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")
