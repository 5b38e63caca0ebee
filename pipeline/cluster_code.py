"""Our code and the user's for workers that lack it. What is here travels by value.

Dask pickles functions by name, so a worker without the module cannot load them. All in
this module is pickled by value instead, and imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from distributed import SchedulerPlugin, WorkerPlugin

FOLDER = "ndcao-code"  # in the local directory of a worker: what was brought to it
KEPT = ("blocks", "pipeline", "flows")  # never loaded anew
MAX_BYTES = 64 * 2**20


class Bundle(NamedTuple):
    """One top-level package or module, as files."""

    name: str
    digest: str
    data: bytes  # a zip archive
    renew: bool  # whether a newer one takes the place of one that was brought before


class Copy(NamedTuple):
    """The copy of a package that a process would import, or has imported."""

    digest: str
    brought: bool  # by us, in a bundle


def find(name: str) -> Path | None:
    """Folder or file of a top-level package or module; None if it has none."""
    importlib.invalidate_caches()
    loaded = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if loaded is None else loaded.__spec__
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.has_location and spec.origin else None


def files_of(path: Path) -> list[tuple[str, Path]]:
    """Names inside an archive, and files, of a package or module, in order."""
    if path.is_file():
        return [(path.name, path)]
    found = [
        (file.relative_to(path.parent), file)
        for file in path.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    ]
    kept = [
        (inside.as_posix(), file)
        for inside, file in found
        if not any(p.startswith(".") or p == "__pycache__" for p in inside.parts)
    ]
    return sorted(kept)


def digest_of(path: Path) -> str:
    """Fingerprint of a package's Python code."""
    whole = hashlib.sha256()
    for inside, file in files_of(path):
        if file.suffix == ".py":
            content = file.read_bytes()
            whole.update(f"{inside}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()[:12]


def bundle(name: str, path: Path, *, renew: bool) -> Bundle:
    """Pack a package or module.

    Raises
    ------
    ValueError — if it is larger than 64 MiB.
    """
    files = files_of(path)
    size = sum(file.stat().st_size for _, file in files)
    if size > MAX_BYTES:
        raise ValueError(
            f"`{name}` must be at most {MAX_BYTES // 2**20} MiB to be sent to workers; "
            f"got {size // 2**20} MiB at {path}. Install it on the workers."
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, file in files:
            archive.write(file, inside)
    return Bundle(name, digest_of(path), buffer.getvalue(), renew)


def copies(names: tuple[str, ...]) -> dict[str, Copy | None]:
    """Return this process's copies of some packages; None = cannot be imported."""
    paths = {name: find(name) for name in names}
    return {
        name: None if path is None else Copy(digest_of(path), FOLDER in path.parts)
        for name, path in paths.items()
    }


def install(one: Bundle, root: Path) -> None:
    """Make a bundle importable in this process, unless it has a copy of its own."""
    here = find(one.name)
    folder = root / FOLDER / f"{one.name}-{one.digest}"
    if here is not None:
        own = FOLDER not in here.parts
        if own or not one.renew or here.parent == folder:
            return
        sys.path[:] = [entry for entry in sys.path if Path(entry) != here.parent]
        for loaded, module in list(sys.modules.items()):
            top = loaded.partition(".")[0]  # others may hold what they import from it
            brought = FOLDER in Path(getattr(module, "__file__", None) or ".").parts
            if top == one.name or (brought and top not in KEPT):
                del sys.modules[loaded]
        if "pipeline.context" in sys.modules:  # it keeps models of the old code
            sys.modules["pipeline.context"].drop_contexts()
    with zipfile.ZipFile(io.BytesIO(one.data)) as archive:
        archive.extractall(folder)
    sys.path.append(str(folder))
    importlib.invalidate_caches()


class WorkerCode(WorkerPlugin):
    """Brings bundles to every worker, also to one that joins later.

    ``posts`` then teaches it to take the posts of synchronous pieces, in the same
    plugin, because Dask sets plugins up in no promised order.
    """

    def __init__(self, name: str, bundles: tuple[Bundle, ...], posts: bool) -> None:
        self.name, self.bundles, self.posts = name, bundles, posts

    def setup(self, worker: Any) -> None:
        """Install what is missing."""
        for one in self.bundles:
            install(one, Path(worker.local_directory))
        if self.posts:
            mailbox = importlib.import_module("pipeline.mailbox")
            mailbox.MailboxPlugin().setup(worker)


class SchedulerCode(SchedulerPlugin):
    """Brings bundles to the scheduler, which unpickles what is submitted."""

    def __init__(self, name: str, bundles: tuple[Bundle, ...]) -> None:
        self.name, self.bundles = name, bundles

    def start(self, scheduler: Any) -> Any:
        """Install what is missing."""
        for one in self.bundles:
            install(one, Path(scheduler.local_directory))


cloudpickle.register_pickle_by_value(sys.modules[__name__])
