"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.partial import fsync, partial

__all__ = ["whole_file", "write_whole"]


@contextlib.contextmanager
def whole_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a file to write, which is at ``path`` after the block; nothing if it fails.

    The content goes to a sibling, with a name as in ``pipeline.partial``, and to the
    disk before it is renamed. The folder is made where it is missing; permissions are
    what the umask leaves of ``mode``.

    Raises
    ------
    RuntimeError — if the disk has no room left for what is written.
    OSError — if it cannot be written; the error names ``path``.
    """
    with partial(path, folder=False, mode=mode) as made:
        with made.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
        fsync(path.parent)


def write_whole(path: Path, content: bytes | str, mode: int = 0o666) -> Path:
    """Write ``content`` (text as UTF-8) to ``path``, whole or not at all.

    Permissions are what the umask leaves of ``mode``.

    Returns
    -------
    ``path``; its folder is made where it is missing.

    Raises
    ------
    RuntimeError, OSError — as :func:`whole_file`.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with whole_file(path, mode) as file:
        file.write(data)
    return path
