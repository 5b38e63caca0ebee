"""The settings of one run, put together from layers that know where they stand.

A layer is what one part of an experiment sets: the base, the budget, one value of an
axis, an arm. Later layers go over earlier ones. ``model``, ``algorithm`` and
``cluster`` are merged key by key, unless another model or algorithm is named; every
other setting is replaced. A key may be dotted (``cluster.workers``, ``nd_cao.window``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blocks import ALGORITHMS
from pipeline.config import RunConfig, problems_of, validate_config
from pipeline.marked_yaml import Place

SECTIONS = {kind.replace("-", "_"): kind for kind in ALGORITHMS}
RESERVED = {"seed": "seeds", "experiment": "name"}
DEFAULT_KIND = "nd-cao"
_MERGED = ("model", "algorithm", "cluster")
_QUOTED = re.compile(r"^`([^`]+)` ")


class SettingError(ValueError):
    """A setting that cannot be put where it should go."""

    def __init__(self, path: Place, text: str) -> None:
        self.path = path
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings, and the place in the file of each.

    A ``lenient`` layer may hold settings of algorithms that a run does not use.
    """

    settings: Mapping[str, Any]
    places: Mapping[str, Place]
    lenient: bool = False

    @classmethod
    def at(
        cls, place: Place, settings: Mapping[str, Any], lenient: bool = False
    ) -> Layer:
        """Return the settings of a mapping that stands at ``place``."""
        return cls(settings, {key: (*place, key) for key in settings}, lenient)


def is_setting(key: str) -> bool:
    """Whether a run has the (perhaps dotted) setting."""
    head, dot, _ = key.partition(".")
    return head in RunConfig.model_fields or bool(dot and head in SECTIONS)


def kind_after(layers: Sequence[Layer]) -> str:
    """Name of the algorithm after all layers."""
    kind = DEFAULT_KIND
    for layer in layers:
        kind = _named(layer.settings.get("algorithm"), kind)
    return kind


def last(layers: Sequence[Layer], key: str, default: Any = None) -> Any:
    """The setting of the last layer that has it."""
    found = [layer.settings[key] for layer in layers if key in layer.settings]
    return found[-1] if found else default


def assemble(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the layers' settings as one nested mapping.

    Raises
    ------
    SettingError — for a setting of another algorithm, or of ``seed`` and
    ``experiment``, or one inside something that is no section.
    """
    kind = kind_after(layers)
    data: dict[str, Any] = {"algorithm": {"kind": kind}}
    current = DEFAULT_KIND
    for layer in layers:
        current = _named(layer.settings.get("algorithm"), current)
        for key, value in layer.settings.items():
            path = tuple(key.split("."))
            section = SECTIONS.get(path[0]) if len(path) > 1 else None
            if section not in (None, kind):
                if layer.lenient:
                    continue
                rule = f"must belong to the run's algorithm {kind}; got {value!r}."
                raise SettingError(path, f"{rule} Set `algorithm: {section}`.")
            if key == "algorithm" and current != kind:
                continue  # a later layer names another algorithm
            _put(data, ("algorithm", *path[1:]) if section else path, value)
    return data


def _named(value: Any, kind: str) -> str:
    if isinstance(value, dict):
        value = value.get("kind", kind)
    return value if isinstance(value, str) else kind


def _put(data: dict[str, Any], path: Place, value: Any) -> None:
    """Set, or merge into a section, the value at ``path``."""
    head = path[0]
    if head in RESERVED:
        rule = f"must be left to the experiment's `{RESERVED[head]}`; got {value!r}."
        raise SettingError(path, f"{rule} Remove it.")
    if len(path) > 1:
        for part in path[:-1]:
            data = data.setdefault(part, {})
            if not isinstance(data, dict):
                rule = f"must name a setting inside a section; got {data!r} there."
                raise SettingError(path, f"{rule} Check the key.")
        data[path[-1]] = copy.deepcopy(value)
        return
    value = copy.deepcopy(value)
    if head == "algorithm":
        value = {"kind": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("kind", ""), str):
            rule = f"must be a name, or a mapping with `kind`; got {value!r}."
            raise SettingError(path, f"{rule} See `ndcao algorithms`.")
    if head == "model" and isinstance(value, str):
        value = {"name": value}
    old = data.get(head)
    if head in _MERGED and isinstance(old, dict) and isinstance(value, dict):
        name = old.get("name", "mlp") if head == "model" else None
        if name == value.get("name", name) or head != "model":
            value = {**old, **value}
    data[head] = value


def validated(layers: Sequence[Layer]) -> RunConfig | list[tuple[Place, str]]:
    """Return the layers' run configuration, or what is wrong: (place, text) each."""
    try:
        return validate_config(assemble(layers))
    except SettingError as err:
        return [(place_of(layers, err.path) or (), str(err))]
    except ValueError as err:
        return list(
            dict.fromkeys(
                _located(layers, path, text) for path, text in problems_of(err)
            )
        )


def _located(layers: Sequence[Layer], path: Place, text: str) -> tuple[Place, str]:
    """Find the setting that an error speaks of, and drop its name from the text."""
    quoted = _QUOTED.match(text)
    name = tuple(quoted.group(1).split(".")) if quoted else ()
    candidates = [c for c in ((*path, *name), path, name) if c]
    for exact in (True, False):
        for candidate in candidates:
            place = place_of(layers, candidate, exact=exact)
            if place is None:
                continue
            if quoted and name[-1] in (str(candidate[-1]), str(place[-1])):
                text = text[quoted.end() :]
            return place, text
    return (), text


def place_of(
    layers: Sequence[Layer], path: Place, *, exact: bool = False
) -> Place | None:
    """Where the setting at ``path`` stands; unless ``exact``, or one around it."""
    around = None
    for layer in reversed(layers):
        for key, place in layer.places.items():
            own: Place = tuple(key.split("."))
            if len(own) > 1 and own[0] in SECTIONS and path[0] == "algorithm":
                own = ("algorithm", *own[1:])
            rest = path[len(own) :]
            if own == path[: len(own)]:
                if _holds(layer.settings[key], rest):
                    return (*place, *rest)
                around = around or place
            elif path == own[: len(path)]:
                around = around or place
    return None if exact else around


def _holds(value: Any, rest: Place) -> bool:
    for part in rest:
        keys = range(len(value)) if isinstance(value, list) else value
        if not isinstance(value, list | dict) or part not in keys:
            return False
        value = value[part]
    return True
