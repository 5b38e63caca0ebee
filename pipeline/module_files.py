"""Which files some code consists of: its modules' own, and those that they import.

What is Python's or ours is left out, what is installed goes by the names of its
distributions. Nothing is imported and nothing run: imports are read from the source.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.loaded_code import as_loaded, check_held, shapes_sha256

OURS = ("blocks", "pipeline", "flows")
RECORDED = ("torch", "numpy")  # whose versions every run records
ENTRY = "__main__"  # the script that was started


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module's code is."""

    file: Path | None  # None: it has none (a namespace, or built in)
    search: tuple[str, ...] | None  # where its submodules are; None: it is no package
    module: types.ModuleType | None = None  # if it is imported


@dataclass(slots=True)
class Closure:
    """The modules that some modules consist of."""

    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of files, by module
    files: dict[str, Path] = field(default_factory=dict)
    installed: set[str] = field(default_factory=set)  # distributions that they import


def closure(
    names: Iterable[str], *, imported: bool, files: Mapping[str, Path] | None = None
) -> Closure:
    """Follow modules to all that they import, directly or not.

    Parameters
    ----------
    names : modules to begin with; or ``module:name``, of which the name counts in a
        module that has no file, as a notebook's.
    imported : look at modules as this process has imported them, where it has; else
        at what an import would find on disk.
    files : further files to begin with, by the name of their module.

    Raises
    ------
    ValueError — if the file of an imported module was changed since.
    """
    importlib.invalidate_caches()
    entries: dict[str, set[str]] = {}
    for name in names:
        module, _, entry = name.partition(":")
        entries.setdefault(module, set()).add(entry)
    names, found = set(entries), Closure()
    todo = [(prefix, True) for name in names for prefix in _prefixes(name)]
    seen = set(todo)
    sources: dict[str, bytes] = {}
    modules: list[types.ModuleType] = []

    def follow(more: Iterable[str], *, written: bool) -> None:
        fresh = {(name, written) for name in more} - seen
        seen.update(fresh)
        todo.extend(sorted(fresh))

    def add(name: str, place: Place) -> None:
        if name not in found.hashes:
            assert place.file is not None
            source = as_loaded(name, place.module, place.file)
            found.hashes[name] = hashlib.sha256(source).hexdigest()
            found.files[name] = place.file
            sources[name] = source
            if place.module:
                modules.append(place.module)
            if place.file.suffix == ".py" or name == ENTRY:
                follow(_imports(source, name, place.search is not None), written=True)
                follow(_held(place.module), written=False)

    for name, file in (files or {}).items():
        add(name, Place(file, None))
    while todo:
        name, written = todo.pop()
        place = _place(name, imported)
        if name.partition(".")[0] in OURS or place is None:
            continue
        if place.file is None:
            if name in names and place.module is not None:  # such as a notebook's own
                found.hashes[name] = shapes_sha256(place.module, entries[name])
            continue
        distributions = _distributions_of(name, place.file)
        if distributions:
            # Not of what is only held: debuggers and test tools put things there.
            found.installed |= distributions if written else set()
        elif not _is_pythons(place.file):
            add(name, place)
    for loaded in modules:
        check_held(loaded, sources, found.files)
    return found


def is_there(name: str) -> bool:
    """Whether an import would find a module of this name; nothing is imported."""
    return _place(name, imported=False) is not None or name in sys.modules


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _place(name: str, imported: bool) -> Place | None:
    """Where a module is; None if there is none of that name."""
    module = sys.modules.get(name) if imported or name == ENTRY else None
    if module is not None:
        spec = getattr(module, "__spec__", None)
        has = spec is None or spec.has_location
        file = getattr(module, "__file__", None) if has else None
        file = None if file and file.startswith("<") else file  # piped in: "<stdin>"
        search = getattr(module, "__path__", None)
        folders = None if search is None else tuple(search)
        return Place(Path(file) if file else None, folders, module)
    parent = name.rpartition(".")[0]
    search = None
    if parent:
        above = _place(parent, imported)
        if above is None or above.search is None:
            return None
        search = list(above.search)
    spec = _spec(name, search)
    if spec is None:
        return None
    folders = spec.submodule_search_locations
    origin = Path(spec.origin) if spec.has_location and spec.origin else None
    return Place(origin, None if folders is None else tuple(folders))


def _spec(name: str, search: list[str] | None) -> Any:
    """What an import would find, without importing packages on the way."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec = None if find is None else find(name, search)
        except (ImportError, ValueError, OSError, AttributeError):
            spec = None
        if spec is not None:
            return spec
    return None


@functools.lru_cache(maxsize=256)
def _imports(source: bytes, name: str, is_package: bool) -> frozenset[str]:
    """Names that may be modules which a source imports, anywhere in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # its import will say so
        return frozenset()
    package = name if is_package else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(p for alias in node.names for p in _prefixes(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            if base:
                found.update(_prefixes(base))
                found.update(f"{base}.{a.name}" for a in node.names if a.name != "*")
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            is_name = isinstance(first, ast.Constant) and isinstance(first.value, str)
            if called in ("import_module", "__import__") and is_name:
                found.update(_prefixes(_absolute(first.value, package)))  # type: ignore[attr-defined]
    return frozenset(found - {""})


def _absolute(name: str, package: str) -> str:
    """A module's whole name, from one that may begin with dots."""
    bare = name.lstrip(".")
    above = len(name) - len(bare) - 1
    if above < 0:
        return bare
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - above]) if above < len(parts) else ""
    return ".".join(part for part in (base, bare) if part)


def _held(module: types.ModuleType | None) -> set[str]:
    """Modules that a module holds, or whose functions and classes it holds."""
    found: set[str] = set()
    for value in list(vars(module).values()) if module else ():
        if isinstance(value, types.ModuleType):
            found.update(_prefixes(value.__name__))
        elif isinstance(value, (type, types.FunctionType)):
            found.update(_prefixes(str(value.__module__)))
    return found


@functools.cache
def _site_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    named = [paths["purelib"], paths["platlib"], site.getusersitepackages()]
    return tuple({Path(path).resolve() for path in (*named, *site.getsitepackages())})


@functools.cache
def _pythons_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[key]).resolve() for key in ("stdlib", "platstdlib")})


def _is_pythons(file: Path) -> bool:
    return _inside(file, _pythons_folders()) and not _in_site(file)


def _in_site(file: Path) -> bool:
    named = {"site-packages", "dist-packages"} & set(file.parts)
    return bool(named) or _inside(file, _site_folders())


def _inside(file: Path, folders: tuple[Path, ...]) -> bool:
    return any(folder in file.resolve().parents for folder in folders)


def _distributions_of(name: str, file: Path) -> set[str]:
    """The installed distributions that share a module's top name; none: not installed.

    A namespace has several, and which of them a module is of is not asked.
    """
    top = name.partition(".")[0]
    if not _in_site(file):
        return set()
    if top in RECORDED:  # finding out takes a while
        return {top}
    return set(_distributions().get(top, ()))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
