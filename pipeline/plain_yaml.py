"""YAML as version 1.2 reads it, within limits: one loader for every file and value.

PyYAML reads version 1.1, in which ``10:00:00`` is 36000, ``0123`` is 83, ``1e-1`` is a
text and ``no`` is false. Here a number is what it looks like (``12``, ``-1.5``,
``1e-1``, ``270_000``, ``0x1f``), and what is none, times and numbers that begin with a
zero among them, is a text. ``yes``, ``no``, ``on`` and ``off``, true or false to one
version and texts to the other, are refused as values.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.resolver import Resolver

__all__ = ["MAX_CHARACTERS", "MERGE", "PlainLoader", "dump_yaml", "unclear"]

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000  # aliases count as often as they stand for something
MAX_DEPTH = 64
MAX_DIGITS = 4_000  # of one number; Python itself reads 4,300

_TAG = "tag:yaml.org,2002:"
MERGE = f"{_TAG}merge"
_WHOLE = r"(?:0|[1-9][0-9]*(?:_[0-9]+)*)"
_EXPONENT = r"[eE][-+]?[0-9]+"
_INT = re.compile(rf"^(?:[-+]?{_WHOLE}|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    rf"^(?:[-+]?(?:{_WHOLE}?\.[0-9]+|{_WHOLE}\.)(?:{_EXPONENT})?"
    rf"|[-+]?{_WHOLE}{_EXPONENT}"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_UNCLEAR = re.compile(r"^(?:yes|no|on|off)$", re.IGNORECASE)
_RESOLVED = (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"^<<$"), ["<"]),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, pattern, starts in _RESOLVED:
        for start in starts:
            table.setdefault(start, []).append((_TAG + name, pattern))
    return table


class PlainLoader(yaml.SafeLoader):
    """A loader of one document that is no larger, deeper or wider than the limits."""

    yaml_implicit_resolvers = _resolvers()

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise yaml.MarkedYAMLError(
                problem=f"it must have at most {MAX_CHARACTERS:,} characters"
            )
        super().__init__(text)
        self._depth = 0
        self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node, unless it is one too many or too deep."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._count += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _too_deep(mark)
        if self._count > MAX_VALUES:
            raise _too_many(mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        """Return the document's root, checked for what its aliases stand for."""
        root = super().get_single_node()
        if root is not None:
            _measure(root, {})
        return root


def _too_many(mark: Any) -> yaml.MarkedYAMLError:
    problem = f"there must be at most {MAX_VALUES:,} values, those of aliases too"
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _too_deep(mark: Any) -> yaml.MarkedYAMLError:
    problem = f"sections must be nested at most {MAX_DEPTH} deep"
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _measure(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values a node stands for, and how deep they go."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 1, 1  # found below itself: whoever walks through it says so
    count, depth = 1, 1
    for child in _children(node):
        inner, below = _measure(child, known)
        count, depth = count + inner, max(depth, below + 1)
    if count > MAX_VALUES:
        raise _too_many(node.start_mark)
    if depth > MAX_DEPTH:
        raise _too_deep(node.start_mark)
    known[id(node)] = count, depth
    return count, depth


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _wrong(node: Any, rule: str) -> ConstructorError:
    return ConstructorError(problem=rule, problem_mark=node.start_mark)


def _text(loader: yaml.SafeLoader, node: Any) -> str:
    return str(loader.construct_scalar(node))


def _integer(loader: yaml.SafeLoader, node: Any) -> int:
    text = _text(loader, node)
    if not _INT.match(text):
        raise _wrong(node, f"a number must be whole; got {text!r}")
    if len(text) > MAX_DIGITS:
        raise _wrong(node, f"a number must have at most {MAX_DIGITS:,} digits")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text.removeprefix("0o").replace("_", ""), base)


def _real(loader: yaml.SafeLoader, node: Any) -> float:
    text = _text(loader, node)
    if not _FLOAT.match(text) and not _INT.match(text):
        raise _wrong(node, f"a number must look like -1.5 or 1e-3; got {text!r}")
    plain = text.lower().replace("_", "")
    if plain.endswith((".inf", ".nan")):
        return float(plain.replace(".", ""))
    number = float(int(plain, 0)) if plain[:2] in ("0o", "0x") else float(plain)
    if math.isinf(number):
        raise _wrong(node, f"a number must be at most 1.8e308 in size; got {text[:20]}")
    return number


def _truth(loader: yaml.SafeLoader, node: Any) -> bool:
    text = _text(loader, node)
    if not _BOOL.match(text):
        raise _wrong(node, f"it must be true or false; got {text!r}")
    return text.lower() == "true"


def _nothing(loader: yaml.SafeLoader, node: Any) -> None:
    if not _NULL.match(text := _text(loader, node)):
        raise _wrong(node, f"null must be empty; got {text!r}")


def unclear(node: Any) -> bool:
    """Whether a node is a bare word that YAML 1.1 takes for true or false."""
    return (
        isinstance(node, yaml.ScalarNode)
        and node.style is None
        and node.tag == f"{_TAG}str"
        and bool(_UNCLEAR.match(node.value))
    )


PlainLoader.yaml_constructors = {
    f"{_TAG}null": _nothing,
    f"{_TAG}bool": _truth,
    f"{_TAG}int": _integer,
    f"{_TAG}float": _real,
    f"{_TAG}str": _text,
    f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
    None: yaml.SafeLoader.construct_undefined,
}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some version of YAML takes for something else."""


_Dumper.yaml_implicit_resolvers = {
    start: [*Resolver.yaml_implicit_resolvers.get(start, ()), *own]
    for start, own in {
        **dict.fromkeys(Resolver.yaml_implicit_resolvers, ()),
        **PlainLoader.yaml_implicit_resolvers,
    }.items()
}


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML whose texts are texts to any reader."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
