"""What differs between two processes' versions, and what of it matters."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Another release of these breaks a run, or changes what it computes.
SAME = ("dask", "distributed", "numpy", "torch")
#: Needed, but another release gives the same results.
NEEDED = ("cloudpickle", "msgpack", "xarray", "zarr")


def release(version: str | None) -> str | None:
    """A version without its local part: ``2.13.0+cpu`` is ``2.13.0``."""
    return None if version is None else version.partition("+")[0]


def mismatches(
    mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, bool]]:
    """(what, theirs, mine, whether it matters), from two answers of ``get_versions``.

    Python's major and minor number and the packages in :data:`SAME` matter, and that
    those in :data:`NEEDED` are there at all.
    """
    here, there = mine["packages"], theirs["packages"]
    short, other = (str(p["python"]).split(".")[:3] for p in (here, there))
    if short != other:
        matters = short[:2] != other[:2]
        yield "python", ".".join(other), ".".join(short), matters
    for name in (*SAME, *NEEDED):
        own, got = release(here.get(name)), release(there.get(name))
        if own != got:
            matters = name in SAME or got is None
            yield name, got or "none", own or "none", matters
    own, got = (str(answer["host"].get("machine")) for answer in (mine, theirs))
    if own != got:
        yield "processor", got, own, False


def is_installed(path: Path) -> bool:
    """Whether a package lies where pip or Python itself puts packages."""
    folders = {sysconfig.get_path(k) for k in ("purelib", "platlib", "stdlib")}
    return any(path.is_relative_to(folder) for folder in folders)
