"""Directories that appear whole or not at all: sibling temporary, fsync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.partial import aside, fsync, held, partial

__all__ = ["partial_directory", "publish"]


@contextlib.contextmanager
def partial_directory(path: Path) -> Iterator[Path]:
    """Yield a fresh sibling of ``path`` to write into; it is gone afterwards.

    Publish what was written with :func:`publish` before the block ends; whatever is
    not published (an error, Ctrl-C) is removed, and ``path`` is left as it was. What
    writers that no longer live left in the same folder is removed first.

    Parameters
    ----------
    path : Path — the directory to be; its parent is created if missing.

    Yields
    ------
    Path — an empty directory beside ``path``, with a name as in ``pipeline.partial``.

    Raises
    ------
    RuntimeError — if the disk has no room left for what is written.
    """
    with partial(path, folder=True) as made:
        yield made


def publish(made: Path, path: Path) -> None:
    """Make ``made`` durable and put it in the place of ``path`` in one step.

    On Linux an existing ``path`` is exchanged for the new one atomically; elsewhere it
    is moved aside first, and put back by the next writer in this folder should the
    process die in between.
    """
    fsync_tree(made)
    try:
        made.rename(path)
    except OSError as err:
        if err.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        _replace(made, path)
    fsync(path.parent)


def fsync_tree(folder: Path) -> None:
    """Ask the disk to keep every file and directory under ``folder``."""
    for parent, _, files in os.walk(folder):
        for name in files:
            fsync(Path(parent, name))
        fsync(Path(parent))


def _replace(made: Path, path: Path) -> None:
    if _exchange(made, path):
        return  # ``made`` now holds the old content, which its owner removes
    old = aside(made)
    with held(path):
        path.rename(old)
        try:
            made.rename(path)
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
