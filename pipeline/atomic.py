"""Directories that appear whole or not at all: sibling temporary, fsync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def partial_directory(path: Path) -> Iterator[Path]:
    """Yield a fresh sibling of ``path`` to write into; it is gone afterwards.

    Publish what was written with :func:`publish` before the block ends; whatever is
    not published (an error, Ctrl-C) is removed, and ``path`` is left as it was.
    Leftovers of processes of this machine that no longer live are removed first.

    Parameters
    ----------
    path : Path — the directory to be; its parent is created if missing.

    Yields
    ------
    Path — an empty directory ``.<name>.<host>-<pid>-<token>.partial`` beside ``path``.

    Raises
    ------
    RuntimeError — if the disk has no room left for what is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    partial = _sibling(path, "partial")
    try:
        partial.mkdir()
        yield partial
    except OSError as err:
        if err.errno not in NO_ROOM:
            raise
        raise RuntimeError(
            f"`store` must have room on its disk; got '{err.strerror}' while writing "
            f"{path}. Free space there or choose another place with --store; "
            "what was there before is untouched."
        ) from err
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, path: Path) -> None:
    """Make ``partial`` durable and put it in the place of ``path`` in one step.

    On Linux an existing ``path`` is exchanged for the new one atomically; elsewhere it
    is moved aside first, and put back by the next :func:`partial_directory` should the
    process die in between.
    """
    fsync_tree(partial)
    try:
        partial.rename(path)
    except OSError as err:
        if err.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        _replace(partial, path)
    _fsync(path.parent)


def fsync_tree(folder: Path) -> None:
    """Ask the disk to keep every file and directory under ``folder``."""
    for parent, _, files in os.walk(folder):
        for name in files:
            _fsync(Path(parent, name))
        _fsync(Path(parent))


def remove_leftovers(path: Path) -> None:
    """Remove partial siblings of ``path`` of dead processes; restore a moved one."""
    pattern = re.compile(
        rf"\.{re.escape(path.name)}\.(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]+\.(partial|old)"
    )
    for found in path.parent.glob(f".{path.name}.*"):
        match = pattern.fullmatch(found.name)
        if match is None or match["host"] != socket.gethostname():
            continue
        if _alive(int(match["pid"])):
            continue
        if found.suffix == ".old" and not path.exists():
            found.rename(path)
        else:
            shutil.rmtree(found, ignore_errors=True)


def _replace(partial: Path, path: Path) -> None:
    if _exchange(partial, path):
        return  # ``partial`` now holds the old content, which its owner removes
    old = _sibling(path, "old")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories atomically where the system can; say whether it did."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    arguments = (at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second))
    return bool(renameat2(*arguments, rename_exchange) == 0)


def _sibling(path: Path, kind: str) -> Path:
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{owner}.{kind}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
