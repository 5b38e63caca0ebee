"""Partial files and folders: how they are called, who holds them, what dead ones leave.

A partial lies beside what it is to become and is called
``.<target>.<machine>-<token>.partial``. Its writer holds a lock (``flock``) on it. The
system lets go of the lock when the process ends, however it ends and in whatever
container it runs, so a partial that can be locked has no writer any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: After this time without a change a partial is taken for left behind where its lock
#: says nothing: on a file system without locks, or written by another machine.
FORGOTTEN_S = 24 * 3600.0

_NAME = re.compile(
    r"\.(?P<target>.+)\.(?P<owner>[0-9a-f]{8}-[0-9a-f]{16})\.(?P<kind>partial|old)"
)
# Names of earlier releases: of folders, and of checkpoints.
_EARLIER = re.compile(
    r"\.(?P<target>.+)\.(?:.+-\d+-[0-9a-f]{8}\.(?P<kind>partial|old)"
    r"|(?<=\.checkpoint\.npz\.)\d+\.partial)"
)
# What a folder says that cannot be synchronised: it may not be read, or cannot at all.
_NO_SYNC = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF, errno.ENOTSUP}

Lock = Literal["ours", "another's", "none"]


@contextlib.contextmanager
def partial(path: Path, *, folder: bool, mode: int = 0o666) -> Iterator[Path]:
    """Yield an empty partial of ``path``; whatever is left of it is removed afterwards.

    What dead writers left in the folder of ``path`` is removed first.

    Parameters
    ----------
    path : Path — what is to be; its parent is created if missing.
    folder : bool — make a directory instead of a file.
    mode : int — permissions of a file, of which the umask takes its part.

    Raises
    ------
    RuntimeError — if the disk has no room left for what is written.
    OSError — if it cannot be written; the error names ``path``, not its partial.
    """
    try:
        make_folder(path.parent)
        remove_leftovers(path.parent)
        made, descriptor = _make(path, folder, mode)
        try:
            yield made
        finally:
            _remove(made)
            os.close(descriptor)
    except OSError as err:
        if err.errno in NO_ROOM:
            raise RuntimeError(
                f"`{path}` must have room on its disk; got '{err.strerror}' while it "
                "was written. Free space there or choose another place; what was there "
                "before is untouched."
            ) from err
        nameless = err.filename is None and not folder  # a folder's writer also reads
        ours = str(err.filename).startswith(str(path.with_name(f".{path.name}.")))
        if err.errno is None or not (nameless or ours):
            raise
        raise OSError(err.errno, err.strerror, str(path)) from err


def remove_leftovers(folder: Path) -> None:
    """Remove partials of dead writers in ``folder``; put back what one moved aside."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name.endswith((".partial", ".old"))]
    except PermissionError:
        return  # a folder to write into, not to look into
    for name in names:
        match = _NAME.fullmatch(name) or _EARLIER.fullmatch(name)
        if match is not None:
            _clear(folder / name, folder / match["target"], match)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a directory that is about to be moved aside."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def aside(made: Path) -> Path:
    """Return where the old content goes while a partial takes its place."""
    return made.with_suffix(".old")


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, so that a power cut does not undo it."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        fsync(one.parent)


def fsync(path: Path) -> None:
    """Ask the disk to keep a file, or (where the system can) a directory's entries."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as err:
        if err.errno not in _NO_SYNC or not path.is_dir():
            raise


def _make(path: Path, folder: bool, mode: int) -> tuple[Path, int]:
    """Make an empty partial of ``path``; return it with the descriptor of its lock."""
    while True:
        owner = f"{_machine()}-{secrets.token_hex(8)}"
        made = path.with_name(f".{path.name}.{owner}.partial")
        if folder:
            made.mkdir()
        flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            descriptor = os.open(made, flags, mode)
        except FileNotFoundError:
            if not folder:
                raise
            continue  # somebody who tidies up was faster than our lock
        # Whoever tidies up holds the lock while removing: with it, and with the name
        # still in its place, the partial is safe.
        if _lock(descriptor) != "another's" and _names(made, descriptor):
            return made, descriptor
        os.close(descriptor)


def _clear(found: Path, target: Path, match: re.Match[str]) -> None:
    """Remove a partial whose writer is dead, or move it back."""
    try:
        flags = os.O_RDONLY if found.is_dir() else os.O_RDWR
        descriptor = os.open(found, flags | os.O_NOFOLLOW)
    except OSError:
        return  # gone already, or not ours to touch
    try:
        lock = _lock(descriptor)
        here = match.groupdict().get("owner", "").startswith(_machine())
        if lock == "another's" or not _names(found, descriptor):
            return
        if not (lock == "ours" and here) and not _forgotten(found):
            return
        if match["kind"] == "old" and not target.exists():
            found.rename(target)
        else:
            _remove(found)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> Lock:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return "another's"
    except OSError:
        return "none"  # a file system without locks
    return "ours"


def _names(path: Path, descriptor: int) -> bool:
    """Whether ``path`` is the name of the open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _forgotten(path: Path) -> bool:
    """Whether nothing in ``path`` changed for a long time."""
    inside = path.rglob("*") if path.is_dir() else ()
    try:
        newest = max(one.lstat().st_mtime for one in (path, *inside))
    except FileNotFoundError:
        return False
    return bool(time.time() - newest > FORGOTTEN_S)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@functools.cache
def _machine() -> str:
    """Return eight digits of the running system: containers of one machine share it."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        name = socket.gethostname()
    return hashlib.sha256(name.encode()).hexdigest()[:8]
