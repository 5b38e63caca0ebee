"""Memory that is free but not given back: arrays pass through a batch for hours."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

EVERY_S = 10.0  # between two times that a training gives memory back

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
_KEPT_BYTES = 2**30  # free at the heap's end before it shrinks by itself
_OWN_MAP_BYTES = 2**25  # smallest array with a mapping of its own; glibc's largest


@lru_cache(maxsize=1)
def keep_freed() -> None:
    """Let this process use freed memory again instead of asking for it anew.

    Dask starts workers with a ``MALLOC_TRIM_THRESHOLD_`` of 64 KiB. glibc then maps and
    unmaps every array of 128 KiB or more, and a network's activations cost a page fault
    every 4 KiB: LeNet was scored at a third of its speed. ``give_back`` still returns
    what is free from time to time. Nothing happens where there is no ``mallopt``.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _OWN_MAP_BYTES)


@lru_cache(maxsize=2)
def _of_libc(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)  # glibc has them, musl not


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it.

    glibc keeps what lies between blocks in use. States and points of 100 kB that come
    and go by the thousand left 1.1 GB in a process that held 0.5 GB.
    """
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)
