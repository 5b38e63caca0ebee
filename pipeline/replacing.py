"""Where an ingest writes to, and what it may replace there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data_store import VARIABLES, read_attributes
from pipeline.outputs import refuse_store
from pipeline.places import data_folder, given_path, resolve_store, wrong_name
from pipeline.sources import NAMES
from pipeline.sources.raw import READERS

OWN = {"image-folder", "npz"}  # data of the user's own
PACKED = (".tar.gz", ".tgz", ".tar", ".zip", ".npz")
BY_SYSTEMS = {".ds_store", "thumbs.db", "desktop.ini"}  # put into folders unasked
_CHUNK = re.compile(r"c(\.\d+)*")


def store_path(name: str, source: Path | None, store: str | Path | None) -> Path:
    """Return the path of the store to write.

    Own data are called as their folder, or as their file without its suffix, unless
    ``store`` says otherwise.

    Raises
    ------
    ValueError — if that is no name, the name of a known data set of other images, or
        a place inside a Zarr store.
    """
    if store is not None:
        path = given_path(store, "store")
    elif name in OWN and source is not None:
        path = data_folder() / f"{_called(source)}.zarr"
    else:
        path = resolve_store(name)
    stem = store_name(path)
    reserved = stem.lower() in NAMES and (name in OWN or stem.lower() != name)
    if not stem or reserved:
        raise ValueError(
            "`store` must have a name of its own, other than "
            f"{', '.join(NAMES)}; got {stem or 'none'} for {source or name}. Choose "
            "one with --store: --store data/NAME.zarr."
        )
    if wrong := wrong_name(stem):
        raise ValueError(
            f"`store` must have a name that can be part of files' names; got {wrong}, "
            f"in {stem!r}. Choose one with --store: --store data/NAME.zarr."
        )
    refuse_store(path, "store")
    return path


def store_name(path: Path) -> str:
    """Return what a store at ``path`` is called: without its ``.zarr``."""
    return path.name.removesuffix(".zarr")


def _called(source: Path) -> str:
    name = source.resolve().name
    if source.is_dir():
        return name
    for suffix in PACKED:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def refuse_foreign(path: Path) -> None:
    """Raise unless ``path`` is free or holds a data store and nothing else.

    A store may be damaged; what stands in its place is only what an ingest writes.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        read_attributes(path)
    except ValueError as err:
        if not all((path / name).is_dir() for name in ("train_image", "test_label")):
            raise ValueError(
                f"`store` must be free or a data store; got {path}, which holds "
                "something else. Choose another --store, or remove it yourself."
            ) from err
    for found in sorted(path.rglob("*")):
        if not _is_ours(found.relative_to(path).parts):
            raise ValueError(
                "`store` must hold nothing but the data store that is replaced; got "
                f"{found}. Move it elsewhere, or choose another --store."
            )


def _is_ours(parts: tuple[str, ...]) -> bool:
    if parts[-1].lower() in BY_SYSTEMS:
        return True
    if len(parts) == 1:
        return parts[0] in {"zarr.json", *VARIABLES}
    inside = len(parts) == 2 and parts[0] in VARIABLES
    return inside and (parts[1] == "zarr.json" or bool(_CHUNK.fullmatch(parts[1])))


def refuse_other_source(path: Path, name: str, source: str, origin: str | None) -> None:
    """Raise if the store at ``path`` was made from something else.

    Parameters
    ----------
    name : the data set to be written.
    source : where its data come from, in words.
    origin : the place of the raw files; None where a checksum says what they are.
    """
    try:
        old = read_attributes(path)
    except (FileNotFoundError, ValueError):
        return  # free, or damaged
    # Stores of before have no origin.
    was = (old.get("name"), old.get("source"), old.get("origin", origin))
    if was != (name, source, origin):
        raise ValueError(
            "`store` must be free or hold what the same source gave before; got "
            f"{path}, made from {_described(old)}, for {source}"
            f"{f' at {origin}' if origin else ''}. Choose another --store, or add "
            "--replace."
        )


def older_reader(path: Path) -> str | None:
    """Return a sentence if an older reader made the store at ``path``; else None."""
    attrs = read_attributes(path)
    kind = str(attrs.get("source")).split(":")[0]
    if _reader(attrs) >= READERS.get(kind, 1):
        return None
    return (
        f"`dataset` {path} was made by an older version, which took photographs as the "
        "camera held them, dropped transparency and cut 16-bit colours. Ingest its "
        "images again, with --replace."
    )


def former_contents(path: Path) -> list[str]:
    """Return the content hashes of what older readers made of this store's source."""
    try:
        former = read_attributes(path).get("former")
    except (FileNotFoundError, ValueError):
        return []
    return [str(content) for content in former] if isinstance(former, list) else []


def former_with(path: Path, source: str, reader: int) -> list[str]:
    """Return ``former_contents`` for what replaces the store at ``path``.

    Parameters
    ----------
    source, reader : where the new data come from, and which reader reads them.
    """
    try:
        old = read_attributes(path)
    except (FileNotFoundError, ValueError):
        return []
    if old.get("source") != source:
        return []
    is_older = _reader(old) < reader and bool(old.get("complete"))
    return former_contents(path) + [str(old.get("content_sha256"))] * is_older


def _reader(attrs: Mapping[str, Any]) -> int:
    version = attrs.get("reader")
    return version if isinstance(version, int) else 1


def _described(attrs: Mapping[str, Any]) -> str:
    origin = attrs.get("origin")
    return f"{attrs.get('source')}{f' at {origin}' if origin else ''}"
