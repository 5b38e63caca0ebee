"""Damages of stores and files, generated from what lies there: none is written by hand.

A damage changes a copy. Kinds: ``flip`` a bit, ``cut``, ``delete``, ``swap`` with a
file of the same kind, ``foreign`` metadata or content of another store, ``attribute``
(a value of the metadata removed, or replaced), ``type`` (a folder or a link where a
file was).
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REMOVED = object()
DEEP = "@@deep@@"  # written as a hundred thousand brackets
NEAR = "near"  # a value of the same type close to the old one
VALUES: tuple[Any, ...] = (
    *(REMOVED, NEAR, None, "", "x", -1, 0.5, 1e300, 10**30, True, [], {}),
    *([[[[1]]]], {"a": {"b": 1}}, "é" * 5000, "NaN", DEEP),
)


@dataclass(frozen=True)
class Damage:
    """One change of a copy; ``apply`` takes the copy's path."""

    kind: str
    where: str
    apply: Callable[[Path], None]


def every(path: Path, other: Path, effort: int) -> Iterator[Damage]:
    """Yield every damage of a store (a folder) or a checkpoint (a file).

    Parameters
    ----------
    path : what is damaged; it is only read here.
    other : another one of its kind, whose files and values are the foreign ones.
    effort : how many new values are tried in one place of the metadata of an array,
        and a quarter of how many bits of a file are flipped.
    """
    damages = _of_store if path.is_dir() else _of_file
    return damages(path, other, effort)


def _of_store(store: Path, other: Path, effort: int) -> Iterator[Damage]:
    files = sorted(p.relative_to(store) for p in store.rglob("*") if p.is_file())
    for name in _some_chunks(files):
        content = (store / name).read_bytes()
        yield from _of_bytes(name, content, 4 * effort)
        yield from _of_place(name)
        for twin in _twins(name, files):
            yield Damage("swap", f"{name} ↔ {twin}", _swap(name, twin))
        if (other / name).is_file() and (other / name).read_bytes() != content:
            where = f"{name} of {other.name}"
            yield Damage("foreign", where, _overwrite(name, other / name))
    for number, name in enumerate(n for n in files if n.name == "zarr.json"):
        tree = json.loads((store / name).read_text(encoding="utf-8"))
        n_values = effort * 8 if name == Path("zarr.json") else effort
        yield from _of_json(name, tree, number, n_values)
    yield Damage("foreign", "a file that no list names", _add("extra/c.0"))


def _of_file(file: Path, other: Path, effort: int) -> Iterator[Damage]:
    here = Path(file.name)
    yield from _of_bytes(here, file.read_bytes(), 32 * effort)
    yield from _of_place(here)
    yield Damage("swap", other.name, _overwrite(here, other))
    with np.load(file, allow_pickle=False) as npz:
        arrays = {name: npz[name] for name in npz.files}
    with np.load(other, allow_pickle=False) as npz:
        theirs = {name: npz[name] for name in npz.files}
    for name in arrays:
        if name in theirs:
            changed = {**arrays, name: theirs[name]}
            yield Damage("foreign", f"{name} of {other.name}", _npz(here, changed))
        rest = {key: value for key, value in arrays.items() if key != name}
        yield Damage("attribute", f"{name} removed", _npz(here, rest))
        if name != "tree" and arrays[name].size:
            for what, value in _other_arrays(arrays[name]):
                changed = {**arrays, name: value}
                yield Damage("attribute", f"{name} {what}", _npz(here, changed))
    tree = json.loads(arrays["tree"].tobytes())
    for where, text in _changed(tree, 0, effort):
        new = np.frombuffer(text.encode(), dtype=np.uint8)
        yield Damage("attribute", where, _npz(here, {**arrays, "tree": new}))


def _of_bytes(name: Path, content: bytes, n_flips: int) -> Iterator[Damage]:
    places = np.unique(np.linspace(0, len(content) - 1, n_flips).astype(int))
    for place in places if content else ():
        yield Damage("flip", f"{name} at {place}", _flip(name, int(place)))
    for length in sorted({0, len(content) // 2, len(content) - 1}):
        if 0 <= length < len(content):
            yield Damage("cut", f"{name} to {length}", _cut(name, length))
    yield Damage("cut", f"{name} and one more byte", _longer(name))


def _of_place(name: Path) -> Iterator[Damage]:
    yield Damage("delete", str(name), _delete(name))
    yield Damage("type", f"{name} a folder", _folder(name))
    yield Damage("type", f"{name} a link to itself", _link(name))


def _of_json(name: Path, tree: Any, number: int, n_values: int) -> Iterator[Damage]:
    for where, text in _changed(tree, number, n_values):

        def apply(store: Path, text: str = text) -> None:
            (store / name).write_text(text, encoding="utf-8")

        yield Damage("attribute", f"{name}: {where}", apply)


def _changed(tree: Any, start: int, n_values: int) -> Iterator[tuple[str, str]]:
    """Yield the tree with each of its values changed, as text.

    ``n_values`` new values are tried in one place; which ones goes round.
    """
    for path in _paths(tree):
        n = min(n_values, len(VALUES))
        values = [VALUES[(start + i) % len(VALUES)] for i in range(n)]
        start += n
        for value in values:
            new = _with(tree, path, value)
            if new is not None:
                shown = "removed" if value is REMOVED else f"= {str(value)[:20]!r}"
                text = json.dumps(new).replace(f'"{DEEP}"', "[" * 100_000)
                yield f"{'.'.join(map(str, path))} {shown}", text


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    alike = len({type(value) for _, value in items}) == 1 and len(items) > 8
    if alike or (isinstance(tree, list) and len(items) > 3):
        items = [items[0], items[len(items) // 2], items[-1]]
    for key, value in items:
        yield from _paths(value, (*path, key))


def _with(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value in one place; None if that changes nothing."""
    new = copy.deepcopy(tree)
    holder = new
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    if value is REMOVED:
        del holder[path[-1]]
        return new
    value = _near(old) if value is NEAR else value
    if (value is None and old is None) or (value == old and type(value) is type(old)):
        return None
    holder[path[-1]] = value
    return new


def _near(old: Any) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return old + 1
    if isinstance(old, float):
        return old * 1.01 + 0.001
    if isinstance(old, str):
        return old[:-1] + chr(ord(old[-1]) ^ 1) if old else "a"
    if isinstance(old, list):
        return old[::-1] if old != old[::-1] else [*old, *old, 1]
    if isinstance(old, dict):
        return {**old, "more": 1}
    return 0


def _other_arrays(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "of another shape", np.concatenate([array.reshape(-1)] * 2)
    yield "empty", array[:0] if array.ndim else array.reshape(1)[:0]
    yield "as text", array.astype(str)
    changed = array.reshape(-1).copy()
    changed[0] = changed[0] + 1 if changed.dtype != bool else not changed[0]
    yield "with another value", changed.reshape(array.shape)
    if array.dtype.kind == "f":
        yield "of NaN", np.full_like(array, np.nan)


def _some_chunks(files: list[Path]) -> list[Path]:
    """The files without all but the first, the middle and the last chunk of arrays."""
    chosen = []
    for folder in dict.fromkeys(file.parent for file in files):
        here = [f for f in files if f.parent == folder]
        chunks = [f for f in here if f.name != "zarr.json"]
        some = {0, len(chunks) // 2, len(chunks) - 1} if chunks else set()
        chosen += [f for f in here if f.name == "zarr.json"]
        chosen += [chunks[place] for place in sorted(some)]
    return chosen


def _twins(name: Path, files: list[Path]) -> list[Path]:
    """Files of the same name in the neighbouring folders, and the next chunk."""
    same = [f for f in files if f.name == name.name and len(f.parts) == len(name.parts)]
    place = same.index(name)
    near = [same[(place + 1) % len(same)]] if len(same) > 1 else []
    chunks = [f for f in files if f.parent == name.parent and f.name != "zarr.json"]
    if name in chunks and chunks.index(name) + 1 < len(chunks):
        near.append(chunks[chunks.index(name) + 1])
    return near


def _flip(name: Path, place: int) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        content = bytearray((store / name).read_bytes())
        content[place] ^= 1 << (place % 8)
        (store / name).write_bytes(content)

    return apply


def _cut(name: Path, length: int) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        (store / name).write_bytes((store / name).read_bytes()[:length])

    return apply


def _longer(name: Path) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        with (store / name).open("ab") as file:
            file.write(b"\0")

    return apply


def _delete(name: Path) -> Callable[[Path], None]:
    return lambda store: (store / name).unlink()


def _folder(name: Path) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        (store / name).unlink()
        (store / name).mkdir()

    return apply


def _link(name: Path) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        (store / name).unlink()
        (store / name).symlink_to((store / name).name)

    return apply


def _swap(name: Path, twin: Path) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        first, second = (store / name).read_bytes(), (store / twin).read_bytes()
        (store / name).write_bytes(second)
        (store / twin).write_bytes(first)

    return apply


def _overwrite(name: Path, source: Path) -> Callable[[Path], None]:
    return lambda store: (store / name).write_bytes(source.read_bytes()) and None


def _add(name: str) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        (store / name).parent.mkdir()
        (store / name).write_bytes(b"\0")

    return apply


def _npz(name: Path, arrays: dict[str, np.ndarray]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        (folder / name).write_bytes(buffer.getvalue())

    return apply


def sample(damages: list[Damage], n: int, seed: int) -> list[int]:
    """Return ``n`` places in ``damages``, every kind among them, in order."""
    by_kind: dict[str, list[int]] = {}
    for place, damage in enumerate(damages):
        by_kind.setdefault(damage.kind, []).append(place)
    draw = random.Random(seed)
    chosen: set[int] = set()
    for places in by_kind.values():
        chosen.update(draw.sample(places, min(len(places), max(1, n // len(by_kind)))))
    return sorted(chosen)
