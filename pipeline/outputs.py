"""What may be written where: an output replaces nothing that is not such an output.

Every file that a user names for us to write goes through :func:`may_write`, before the
work is done and again when it is written.
"""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.places import given_path

__all__ = ["KINDS", "check_folder", "may_write", "refuse_store", "store_around"]

_OF_ZARR = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_HEAD = 65_536  # bytes that tell what a file is
_COLUMNS = {"run_id", "eval"}  # that every table of runs has


@dataclass(frozen=True, slots=True)
class Kind:
    """Files of one kind: what they are, how their names end, how one is known."""

    what: str
    suffixes: tuple[str, ...]
    is_one: Callable[[Path, bytes], bool]


def may_write(path: str | Path, kind: str, setting: str) -> Path:
    """Return the path of an output, unless writing there would destroy something.

    Parameters
    ----------
    path : Path — the file to write; ``~`` is the user's home.
    kind : a name of :data:`KINDS`.
    setting : what the user calls it, for errors.

    Raises
    ------
    ValueError — if the name is empty, ends wrongly, or lies in a Zarr store.
    FileExistsError — if something is there that is not such an output.
    """
    known = KINDS[kind]
    path = given_path(path, setting)
    if path.suffix.lower() not in known.suffixes:
        raise ValueError(
            f"`{setting}` must end with {' or '.join(known.suffixes)}; got "
            f"{str(path)!r}. Rename it."
        )
    refuse_store(path, setting)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISREG(mode) or not _is_one(path, known):
        raise FileExistsError(
            f"`{setting}` must not replace what is not {known.what}; got {path}. "
            "Choose another name, or remove it first."
        )
    return path


def check_folder(folder: str | Path, setting: str) -> Path:
    """Return the path of a folder to write into, unless it is in a Zarr store.

    Raises
    ------
    ValueError — if the name is empty, or lies in a Zarr store.
    """
    path = given_path(folder, setting)
    refuse_store(path / "x", setting)
    return path


def store_around(path: Path) -> Path | None:
    """Return the Zarr store (there, or of that name) that ``path`` lies in."""
    for one in (path, path.resolve()):
        for folder in one.parents:
            if folder.suffix == ".zarr" or any((folder / n).exists() for n in _OF_ZARR):
                return folder
    return None


def refuse_store(path: Path, setting: str) -> None:
    """Raise ValueError if ``path`` lies in a Zarr store."""
    store = store_around(path)
    if store is not None:
        raise ValueError(
            f"`{setting}` must not lie inside a Zarr store, which is replaced as a "
            f"whole; got a place in {store}. Choose another folder."
        )


def _is_one(path: Path, kind: Kind) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return not head or kind.is_one(path, head)


def _is_report(path: Path, head: bytes) -> bool:
    """Pages of before have no generator, but the policy that only ours have."""
    policy = b"\"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-"
    return head.startswith(b"<!DOCTYPE html>") and (
        b'name="generator" content="ndcao"' in head or policy in head
    )


def _is_network(path: Path, head: bytes) -> bool:
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not 2 <= length <= min(path.stat().st_size, 100_000_000):
        return False
    with path.open("rb") as file:
        text = file.read(8 + length)[8:]
    try:
        found: Any = json.loads(text)
        about = found.get("__metadata__", {})
        return {"run_id", "image_shape"} <= set(about)
    except (ValueError, AttributeError, TypeError):
        return False


def _is_netcdf(path: Path, head: bytes) -> bool:
    if not head.startswith(b"\x89HDF\r\n\x1a\n"):
        return False
    import netCDF4

    try:
        with netCDF4.Dataset(path) as file:
            return "run_id" in file.variables and {"run", "eval"} <= {*file.dimensions}
    except OSError:
        return False


def _is_csv(path: Path, head: bytes) -> bool:
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    columns = first.split(",")
    if path.name.endswith(".columns.csv"):
        return columns == ["column", "units", "long_name", "description"]
    return set(columns) >= _COLUMNS


def _is_parquet(path: Path, head: bytes) -> bool:
    if not head.startswith(b"PAR1"):
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {*pq.read_schema(path).names} >= _COLUMNS
    except (pa.ArrowException, OSError):
        return False


def _is_picture(path: Path, head: bytes) -> bool:
    png = head.startswith(b"\x89PNG") and b"tEXtSource\0ndcao" in head
    return png or b"<dc:creator>\n     <cc:Agent>\n      <dc:title>ndcao</dc:" in head


KINDS = {
    "report": Kind("a page of ndcao", (".html", ".htm"), _is_report),
    "network": Kind("a network that ndcao wrote", (".safetensors",), _is_network),
    "netcdf": Kind("runs that ndcao wrote", (".nc",), _is_netcdf),
    "csv": Kind("a table that ndcao wrote", (".csv",), _is_csv),
    "parquet": Kind("a table that ndcao wrote", (".parquet",), _is_parquet),
    "picture": Kind("a figure that ndcao wrote", (".png", ".svg"), _is_picture),
}
