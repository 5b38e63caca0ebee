"""The arms of an experiment: combinations of the grid, named, some left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blocks import ALGORITHMS
from pipeline.axes import NO_NAME, Axis, Value, label_of
from pipeline.layers import Layer, kind_after, last
from pipeline.marked_yaml import Place

_NAMED = ("mode", "dataset", "algorithm")  # begin the name of a grid's arm


@dataclass(frozen=True, slots=True)
class Dropped:
    """A combination of the grid that is not run, and why."""

    labels: Mapping[str, str]
    reason: str


@dataclass(frozen=True, slots=True)
class Arm:
    """One set of settings that every seed is run with; ``values`` are the grid's."""

    label: str
    labels: Mapping[str, str]
    layers: tuple[Layer, ...]
    place: Place
    values: tuple[tuple[Axis, Value], ...] = ()


def grid_arms(
    axes: Sequence[Axis],
    base: Sequence[Layer],
    rules: Sequence[Mapping[str, Any]],
    dropped: list[Dropped],
) -> Iterator[Arm]:
    """Yield an arm for every combination that is run; note the others."""
    if not axes:
        return
    for values in itertools.product(*(axis.values for axis in axes)):
        pairs = tuple(zip(axes, values, strict=True))
        kind = kind_after([*base, *(value.layer for value in values)])
        used = tuple((axis, value) for axis, value in pairs if axis.applies(kind))
        reason = _why_not(pairs, used, kind, rules)
        if reason:
            labels = {axis.name: value.label for axis, value in pairs}
            dropped.append(Dropped(labels, reason))
            continue
        layers = (*base, *(value.layer for _, value in used))
        labels = {axis.name: value.label for axis, value in used}
        yield Arm(name_of(layers, used), labels, layers, ("grid",), used)


def _why_not(
    pairs: Sequence[tuple[Axis, Value]],
    used: Sequence[tuple[Axis, Value]],
    kind: str,
    rules: Sequence[Mapping[str, Any]],
) -> str:
    """Why a combination is not run; "" if it is."""
    own = {axis.name: value for axis, value in used}
    for axis, value in pairs:
        if axis.name not in own and value is not axis.values[0]:
            return (
                f"`{axis.name}` says nothing to {kind}: the same as with "
                f"{axis.values[0].label}"
            )
    by_name = {axis.name: axis for axis, _ in used}
    for rule in rules:
        if all(n in own and own[n] in by_name[n].chosen(w) for n, w in rule.items()):
            return "excluded"
    layers = [value.layer for _, value in used]
    modes = ALGORITHMS[kind].modes if kind in ALGORITHMS else frozenset()
    mode = last(layers, "mode")
    together = any({"mode", "algorithm"} <= set(layer.places) for layer in layers)
    if mode in ("sync", "async") and modes and mode not in modes and not together:
        return f"{kind} has no mode {mode}"
    return ""


def name_of(layers: Sequence[Layer], used: Sequence[tuple[Axis, Value]]) -> str:
    """Return the name of an arm: ``async-mnist-nd-cao-straggler``.

    Mode, data set and algorithm, then the other axes that have several values. What a
    free name sets is left to that name.
    """
    kind = kind_after(layers)
    modes = ALGORITHMS[kind].modes if kind in ALGORITHMS else {"sync"}
    own = {axis.name: value.label for axis, value in used}
    default = {"mode": "sync" if "sync" in modes else "async", "dataset": "digits"}
    parts = []
    for key in _NAMED:
        if any(axis.free and axis.sets({key}) for axis, _ in used):
            continue
        value = kind if key == "algorithm" else last(layers, key, default[key])
        parts.append(own.get(key) or label_of(key, value))
    parts += [
        value.label
        for axis, value in used
        if axis.name not in _NAMED and len(axis.values) > 1 and value.label != NO_NAME
    ]
    return "-".join(parts)
