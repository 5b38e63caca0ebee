"""YAML whose every value knows its line, so that an error can say where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Place = tuple[Any, ...]  # keys and list indices that lead to a value
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file."""

    file: str
    line: int | None  # from 1; None = not known
    key: str
    text: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return (
            f"{where}: {self.key}: {self.text}" if self.key else f"{where}: {self.text}"
        )


class FileError(ValueError):
    """What is wrong in a file, in the order of its lines; one line each as text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.line or 0))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Marked:
    """Data with the file and the lines that they were read from."""

    data: Any
    file: str
    lines: Mapping[Place, int] = field(default_factory=dict)

    def problem(self, place: Place, text: str) -> Problem:
        """Return a problem at ``place``, or at the nearest value around it."""
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known)
        return Problem(self.file, line, show_place(known or place), text)


def show_place(place: Place) -> str:
    """Return a place as text: ``grid.algorithm[1].window``."""
    parts = [f"[{p}]" if isinstance(p, int) else f".{p}" for p in place]
    return "".join(parts).removeprefix(".")


def read_marked(path: Path) -> Marked:
    """Read a YAML file that holds one mapping.

    Raises
    ------
    FileError — naming file, line and key, if it is not YAML or no mapping, has a key
    twice, contains itself, or is indented with tabs.
    """
    file = str(path)
    lines: dict[Place, int] = {(): 1}
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        root: Any = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            kind = "nothing" if root is None else f"a {root.id}"
            raise _error(file, 1, "", f"must be a mapping of settings; got {kind}.")
        _walk(root, (), (), _Walk(loader, file, lines))
        data = loader.construct_document(root)
    except UnicodeDecodeError as err:
        raise _error(file, None, "", f"must be UTF-8 text; got {err}.") from err
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else None
        raise _error(file, line, "", _describe(err)) from err
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        rule = f"must be printable text; got character {err.character!r}."
        raise _error(file, line, "", rule) from err
    return Marked(data, file, lines)


@dataclass(frozen=True, slots=True)
class _Walk:
    loader: yaml.SafeLoader
    file: str
    lines: dict[Place, int]


def _walk(node: Any, place: Place, around: tuple[Any, ...], walk: _Walk) -> None:
    """Note the lines of everything in a node, and refuse keys that are there twice."""
    line = node.start_mark.line + 1
    if any(node is outer for outer in around):
        raise _error(walk.file, line, show_place(place), "must not contain itself.")
    inside = (*around, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            walk.lines.setdefault((*place, index), item.start_mark.line + 1)
            _walk(item, (*place, index), inside, walk)
    elif isinstance(node, yaml.MappingNode):
        _walk_mapping(node, place, inside, walk)


def _walk_mapping(node: Any, place: Place, inside: Place, walk: _Walk) -> None:
    merged: list[Any] = []
    first: dict[Any, int] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == _MERGE:
            merged.append(value)
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            rule = f"must have plain words as keys; got a {key_node.id}."
            raise _error(walk.file, line, show_place(place), rule)
        key = walk.loader.construct_object(key_node, deep=True)
        if key in first:
            rule = f"must stand once; it is in line {first[key]} already. Remove one."
            raise _error(walk.file, line, show_place((*place, key)), rule)
        first[key] = line
        walk.lines.setdefault((*place, key), line)
        _walk(value, (*place, key), inside, walk)
    for value in merged:  # `<<: *anchor`: what the mapping itself has goes first
        is_list = isinstance(value, yaml.SequenceNode)
        for part in value.value if is_list else [value]:
            _walk(part, place, inside, walk)


def _describe(err: yaml.MarkedYAMLError) -> str:
    problem = err.problem or "cannot be read"
    if "'\\t'" in problem:
        return "must be indented with spaces; got a tab."
    context = f" ({err.context})" if err.context else ""
    return f"must be valid YAML; {problem}{context}."


def _error(file: str, line: int | None, key: str, text: str) -> FileError:
    return FileError([Problem(file, line, key, text)])
