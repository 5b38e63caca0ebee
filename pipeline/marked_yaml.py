"""YAML whose every value knows its line, so that an error can say where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.plain_yaml import MAX_CHARACTERS, MERGE, PlainLoader, unclear

Place = tuple[Any, ...]  # keys and list indices that lead to a value


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
    twice, contains itself, is indented with tabs, is no UTF-8, or is too large.
    """
    file = str(path)
    return _read(_text_of(path), file, mapping=True)


def read_value(text: str, name: str) -> Any:
    """Return the value that a text stands for, as it would in a file.

    Raises
    ------
    ValueError — naming ``name``, if it is no YAML value.
    """
    try:
        return _read(text, "").data
    except FileError as err:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        found = err.problems[0]
        inside = f"{found.key} " if found.key else ""
        raise ValueError(
            f"`{name}` must be a YAML value; got {shown!r}: {inside}{found.text}"
        ) from err


def _text_of(path: Path) -> str:
    file = str(path)
    with path.open("rb") as opened:
        content = opened.read(4 * MAX_CHARACTERS + 1)
    if len(content) > 4 * MAX_CHARACTERS:
        rule = f"must have at most {MAX_CHARACTERS:,} characters. Is it the right file?"
        raise _error(file, None, "", rule)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        byte = content[err.start]
        rule = f"must be UTF-8 text; got byte 0x{byte:02x}. Save it as UTF-8."
        raise _error(file, line, "", rule) from err


def _read(text: str, file: str, *, mapping: bool = False) -> Marked:
    lines: dict[Place, int] = {(): 1}
    try:
        loader = PlainLoader(text)
        root = loader.get_single_node()
        if mapping and not isinstance(root, yaml.MappingNode):
            kind = "nothing" if root is None else f"a {root.id}"
            raise _error(file, 1, "", f"must be a mapping of settings; got {kind}.")
        if root is None:
            return Marked(None, file, lines)
        _walk(root, (), (), _Walk(loader, file, lines))
        data = loader.construct_document(root)
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
    loader: PlainLoader
    file: str
    lines: dict[Place, int]


def _walk(node: Any, place: Place, around: Place, walk: _Walk) -> None:
    """Note the lines of everything in a node, and refuse keys that are there twice."""
    if any(node is outer for outer in around):
        line = node.start_mark.line + 1
        raise _error(walk.file, line, show_place(place), "must not contain itself.")
    inside = (*around, node)
    if unclear(node):
        rule = (
            f"must be true or false, or a text in quotes; got {node.value}, which is "
            "the one or the other to different readers of YAML."
        )
        line = walk.lines.get(place, 1)
        raise _error(walk.file, line, show_place(place), rule)
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
        if not isinstance(key_node, yaml.ScalarNode):
            rule = f"must have plain words as keys; got a {key_node.id}."
            raise _error(walk.file, line, show_place(place), rule)
        merges = key_node.tag == MERGE
        key = "<<" if merges else walk.loader.construct_object(key_node, deep=True)
        if key in first:
            rule = f"must stand once; it is in line {first[key]} already. Remove one."
            raise _error(walk.file, line, show_place((*place, key)), rule)
        first[key] = line
        if merges:
            merged.append(value)
            continue
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
    if "could not determine a constructor" in problem:
        problem = f"its values may have no tags such as {problem.split()[-1]}"
    context = f" ({err.context})" if err.context else ""
    return f"must be valid YAML; {problem}{context}."


def _error(file: str, line: int | None, key: str, text: str) -> FileError:
    return FileError([Problem(file, line, key, text)])
