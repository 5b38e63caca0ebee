"""Whether a module still is what its file says.

Code that was imported does not change when its file does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import marshal
import sys
import types
from collections.abc import Iterable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

HEADER_BYTES = 16  # of a compiled file
_SCALARS = (int, float, complex, str, bytes, bool, type(None))
# By module: what marks this very import of it, and the source that was seen first.
_SEEN: dict[str, tuple[object, bytes]] = {}


def as_loaded(name: str, module: types.ModuleType | None, file: Path) -> bytes:
    """Return the source that a module runs: of its file, which must not have changed.

    Parameters
    ----------
    module : as it is imported; None = it is not, and would be read from the file.

    Raises
    ------
    ValueError — if the file was changed since the module was imported, or the module's
        constants were.
    FileNotFoundError — if the file is gone and was never looked at.
    """
    if module is None:
        return _read(file)
    mark = getattr(module, "__spec__", None) or module
    known = _SEEN.get(name)
    if known is not None and known[0] is not mark:
        known = None
    if known is not None and not file.exists() and file.parent.is_dir():
        return known[1]
    source = _read(file)
    if known is not None:
        if source != known[1] and not _same_program(source, known[1]):
            raise _changed(name, file, "its file was changed since it was imported")
        source = known[1]
    if file.suffix == ".py" or name == "__main__":
        _check(name, module, source, file)
    _SEEN[name] = (mark, source)
    return source


def _read(file: Path) -> bytes:
    """Read a source, or the whole archive that it lies in."""
    archive = next((path for path in file.parents if path.is_file()), None)
    if archive is not None:
        return archive.read_bytes()
    content = file.read_bytes()
    return content.replace(b"\r\n", b"\n") if file.suffix == ".py" else content


def _same_program(a: bytes, b: bytes) -> bool:
    """Whether two sources differ in comments and layout only."""
    try:
        return ast.dump(ast.parse(a)) == ast.dump(ast.parse(b))
    except (SyntaxError, ValueError):
        return False


def _check(name: str, module: types.ModuleType, source: bytes, file: Path) -> None:
    """Refuse a module whose functions or constants are not those of a source."""
    loader = getattr(module, "__loader__", None)
    if not isinstance(loader, SourceFileLoader):
        return  # its code may have been rewritten on the way
    try:
        written = _loadable(source, name, loader, file)
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        raise _changed(name, file, "its file is no Python any more") from None
    for function in _functions(module):
        code = function.__code__
        if code.co_filename == module.__file__ and _shape(code) not in written:
            what = f"`{code.co_qualname}` is not what the file holds"
            raise _changed(name, file, what)
    for constant, value in _constants(tree).items():
        here = vars(module).get(constant, value)
        if isinstance(here, _SCALARS) and repr(here) != repr(value):
            what = f"`{constant}` is {here!r} in this process and {value!r} in the file"
            raise _changed(name, file, what)


def check_held(
    module: types.ModuleType, sources: Mapping[str, bytes], files: Mapping[str, Path]
) -> None:
    """Refuse a module that holds functions of another as that one was before.

    Raises
    ------
    ValueError — naming the other one, which was imported anew in the meantime.
    """
    for function in _functions(module, own=False):
        name = function.__module__
        loader = function.__globals__.get("__loader__")
        made = function.__code__.co_filename.startswith("<")
        if name == module.__name__ or name not in sources or made:
            continue
        if not isinstance(loader, SourceFileLoader):
            continue
        written = _loadable(sources[name], name, loader, files[name])
        if _shape(function.__code__) not in written:
            what = f"`{module.__name__}` holds `{function.__qualname__}` of before"
            raise _changed(name, files[name], what)


def _loadable(
    source: bytes, name: str, loader: SourceFileLoader, file: Path
) -> frozenset[Any]:
    """Shapes of all code that a loader can have made of a source.

    Tools put loaders of their own before every import (Prefect brings beartype's), and
    most modules come through them as they are.
    """
    written = _written(source, name)
    if type(loader) is SourceFileLoader or not bytecode_is_of(file, source):
        return written
    whole = loader.get_code(name)
    return written if whole is None else written.union(_shapes(whole))


@functools.lru_cache(maxsize=256)
def _written(source: bytes, name: str) -> frozenset[Any]:
    """Shapes of all code in a source."""
    whole = compile(source, name, "exec", dont_inherit=True)
    return frozenset(_shapes(whole))


def _changed(name: str, file: Path, what: str) -> ValueError:
    return ValueError(
        f"`{name}` must be in {this_process()} what its file says, as that stands for "
        f"it in the run's id; got {file} where {what}. Start the process anew, so that "
        "it is imported as it is now; values that vary belong into `model.options`."
    )


def this_process() -> str:
    """Name this process for an error message."""
    if "distributed.worker" in sys.modules:
        from distributed import get_worker

        try:
            return f"worker {get_worker().address}"
        except ValueError:
            pass
    return "this process"


def _functions(
    module: types.ModuleType, *, own: bool = True
) -> list[types.FunctionType]:
    """Functions and methods that a module holds, as far as they can be seen.

    ``own``: only those that it defines itself.
    """
    found: list[types.FunctionType] = []
    for value in list(vars(module).values()):
        if isinstance(value, type):
            if not own or value.__module__ == module.__name__:
                found += [f for v in vars(value).values() for f in _unwrapped(v)]
        else:
            found += _unwrapped(value)
    return [f for f in found if not own or f.__module__ == module.__name__]


def _unwrapped(value: Any) -> list[types.FunctionType]:
    if isinstance(value, property):
        parts = [value.fget, value.fset, value.fdel]
        return [f for part in parts for f in _unwrapped(part)]
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    try:
        value = inspect.unwrap(value)
    except ValueError:  # it wraps itself
        return []
    return [value] if isinstance(value, types.FunctionType) else []


def _shapes(code: types.CodeType) -> list[Any]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [_shape(code), *(shape for c in inner for shape in _shapes(c))]


def _shape(code: types.CodeType) -> Any:
    """What a code object does, wherever it stands in its file."""
    consts = tuple(
        _shape(c) if isinstance(c, types.CodeType) else _constant(c)
        for c in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount)
    return (code.co_qualname, code.co_code, consts, names, counts, code.co_flags)


def _constant(value: Any) -> str:
    """Text of a constant in code; sets have no order of their own."""
    if isinstance(value, frozenset):
        return repr(sorted(map(repr, value)))
    return f"{type(value).__name__} {value!r}"


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Numbers and texts that a module gives a name once and never again."""
    stores: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            stores |= dict.fromkeys(node.names, 2)
    for node in _top_level(tree.body):
        bound = ""
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound = node.id
        elif isinstance(node, ast.alias):
            bound = node.asname or node.name
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound = node.name
        stores[bound] = stores.get(bound, 0) + 1
    found = {}
    for statement in tree.body:
        targets: list[Any] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        for target in targets:
            value = getattr(statement, "value", None)
            if isinstance(target, ast.Name) and stores.get(target.id) == 1:
                try:
                    literal = ast.literal_eval(value)  # type: ignore[arg-type]
                except (ValueError, TypeError, SyntaxError, MemoryError):
                    continue
                if isinstance(literal, _SCALARS):
                    found[target.id] = literal
    return found


def _top_level(body: list[ast.stmt]) -> list[ast.AST]:
    """Nodes that belong to a module's own scope."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = list(body)
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    while todo:
        node = todo.pop()
        found.append(node)
        if not isinstance(node, inner):
            todo.extend(ast.iter_child_nodes(node))
    return found


def bytecode_is_of(file: Path, source: bytes) -> bool:
    """Whether the compiled file beside a source is of that source, if one is there.

    Python runs a compiled file without a look at the source if time and size fit.
    """
    try:
        cached = Path(importlib.util.cache_from_source(str(file)))
        compiled = cached.read_bytes()
    except (OSError, NotImplementedError):
        return True
    try:
        kept = marshal.loads(compiled[HEADER_BYTES:])
        whole = compile(source, str(file), "exec", dont_inherit=True)
        return bool(_shape(kept) == _shape(whole))
    except (ValueError, EOFError, TypeError, SyntaxError, AttributeError):
        return False


def shapes_sha256(module: types.ModuleType, entries: Iterable[str]) -> str:
    """Hash of what a module without a file defines, as far as ``entries`` need it.

    Followed are functions and classes of its own. Of values that they look up, have as
    defaults, attributes or fixed arguments, numbers, texts, arrays, and collections of
    these count; of others their type.

    Parameters
    ----------
    entries : names in the module that are called from outside.
    """
    names, found = vars(module), dict[str, str]()
    todo = [entry.partition(".")[0] for entry in entries]
    while todo:
        name = todo.pop()
        if name in found or name not in names:
            continue
        value = names[name]
        kind = value if isinstance(value, type) else type(value)
        own = kind.__module__ == module.__name__
        kept = _value(_attributes(value) if own else value)
        functions = [f for f in _parts(value) if f.__module__ == module.__name__]
        found[name] = repr([kept, *map(_filled, functions)])
        todo += [looked for f in functions for looked in _names(f.__code__)]
        todo += [k.__name__ for k in kind.__mro__ if k.__module__ == module.__name__]
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _parts(value: Any) -> list[types.FunctionType]:
    """Functions that a value consists of."""
    if isinstance(value, functools.partial):
        return _parts(value.func)
    if isinstance(value, type):
        return [f for v in vars(value).values() for f in _unwrapped(v)]
    return _unwrapped(value)


def _attributes(value: Any) -> dict[str, Any]:
    own = getattr(value, "__dict__", {})
    return {k: v for k, v in own.items() if not k.startswith("__")}


def _filled(function: types.FunctionType) -> Any:
    """Code of a function with the values that it was made with."""
    made = [function.__defaults__, function.__kwdefaults__]
    cells = inspect.getclosurevars(function).nonlocals
    return _shape(function.__code__), _value(made), _value(cells)


def _names(code: types.CodeType) -> set[str]:
    """Names that code looks up outside of itself."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return {*code.co_names, *(name for c in inner for name in _names(c))}


def _value(value: Any) -> str:
    """Text of a value that equals that of no other; of what is no data, its type."""
    if isinstance(value, _SCALARS):
        return repr(value)
    if isinstance(value, (set, frozenset)):
        return f"set {sorted(map(_value, value))}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} {[_value(v) for v in value]}"
    if isinstance(value, dict):
        return f"dict {[(_value(k), _value(v)) for k, v in value.items()]}"
    if isinstance(value, functools.partial):
        called = getattr(value.func, "__qualname__", "")
        return f"partial {called} {_value(value.args)} {_value(value.keywords)}"
    if type(value).__module__ in ("numpy", "torch") and hasattr(value, "tolist"):
        return f"{value.dtype} {value.shape} {value.tolist()}"
    return type(value).__name__
