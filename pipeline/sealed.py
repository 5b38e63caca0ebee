"""Zarr stores of which every file has its hash in the root, and the root its own.

A reader opens such a store through `SealedStore`, which hands zarr what the root lists
and nothing else: a file is hashed as it is read, a listed one that is gone is an error
instead of zeros, and one that is not listed is not there. Any other reader of Zarr v3
sees a plain store with two attributes more.

Stores that were written before there was a seal list their chunks with sizes only; what
they hold is checked by whoever knows the hashes of their values.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import stat
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from pipeline.arrays import chunk_sizes

__all__ = [
    "FILES",
    "SEAL",
    "UNREADABLE",
    "Damaged",
    "Listed",
    "SealedStore",
    "check_seal",
    "is_sealed",
    "listed_files",
    "read_root",
    "seal",
    "wrong_file",
]

#: The attributes that seal a store: file → sha256, and the sha256 of all attributes.
FILES, SEAL = "files", "store_sha256"
ROOT = "zarr.json"
_LARGEST_ROOT = 32 * 2**20  # bytes; a store of 1 TB has a root of about this size
_LARGEST_METADATA = 2**20
_LARGEST_CHUNK = 4 * 2**30  # uncompressed
_KEY = re.compile(r"[A-Za-z0-9_]+/(zarr\.json|c(\.[0-9]+)*)")
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
_CODECS = {"bytes", "zstd", "crc32c"}
_GROUP = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": None}

_Buffers = list[Buffer | None]  # a store has a method called ``list``

#: What zarr, its codecs and JSON readers raise on stores that are broken or hostile.
UNREADABLE = (
    *(ValueError, OSError, LookupError, TypeError, AttributeError),
    *(RuntimeError, ArithmeticError, MemoryError),
)


class Damaged(ValueError):
    """What lies in a store is not what was written into it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What a root says of a file; None where it says nothing."""

    size: int | None  # bytes
    sha256: str | None


def seal(group: zarr.Group, folder: Path, attrs: Mapping[str, Any]) -> None:
    """Write the attributes of a store whose arrays are complete, with its seal.

    Parameters
    ----------
    group : zarr.Group — the root of the store.
    folder : Path — where it lies.
    attrs : mapping — JSON values, all that the root is to hold besides ``chunks``,
        ``files`` and ``store_sha256``.
    """
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes())
        for path in sorted(folder.glob("*/*"))
    }
    listed = {name: found.hexdigest() for name, found in hashes.items()}
    group.attrs.put({**attrs, "chunks": chunk_sizes(folder), FILES: listed})
    written = _parse((folder / ROOT).read_bytes())["attributes"]  # as readers see them
    group.attrs.put({**written, SEAL: _attributes_hash(written)})


def read_root(path: Path) -> dict[str, Any]:
    """Return the attributes of a store's root; `check_seal` says whether to believe it.

    Raises
    ------
    Damaged — if there is no root, or it is no Zarr v3 group's.
    """
    try:
        meta = _parse(_read(path / ROOT, _LARGEST_ROOT))
    except OSError as err:
        raise Damaged(f"a {ROOT} that cannot be read ({err.strerror})") from err
    attrs = meta.pop("attributes", None) if isinstance(meta, dict) else None
    if not isinstance(attrs, dict) or {**_GROUP, **meta} != _GROUP:
        raise Damaged(f"a {ROOT} that is not a Zarr v3 group's")
    return attrs


def check_seal(attrs: Mapping[str, Any]) -> None:
    """Refuse attributes of a sealed store that are not those that were written.

    Raises
    ------
    Damaged — if one of them was changed, added, or removed.
    """
    if is_sealed(attrs) and attrs.get(SEAL) != _attributes_hash(attrs):
        raise Damaged(f"attributes in {ROOT} with another hash")


def is_sealed(attrs: Mapping[str, Any]) -> bool:
    """Whether a store was sealed; one half of a seal is as good as both."""
    return FILES in attrs or SEAL in attrs


def listed_files(attrs: Mapping[str, Any]) -> dict[str, Listed]:
    """Return what the attributes of a complete store say of its files.

    Raises
    ------
    Damaged — if they list what no store of ours holds.
    """
    try:
        sizes = {str(name): int(size) for name, size in attrs["chunks"].items()}
        hashes: dict[str, str | None] = {}
        if is_sealed(attrs):
            hashes |= {str(name): str(found) for name, found in attrs[FILES].items()}
        else:
            metadata = (f"{name}/{ROOT}" for name in attrs["variables"])
            hashes |= dict.fromkeys([*metadata, *sizes])
    except (LookupError, AttributeError, TypeError, ValueError) as err:
        raise Damaged(f"lists of files in {ROOT} that cannot be read") from err
    odd = [name for name in hashes if not _KEY.fullmatch(name)]
    odd += sizes.keys() - hashes.keys()
    if odd:
        raise Damaged(f"{odd[0]!r} among the files that {ROOT} lists")
    return {name: Listed(sizes.get(name), found) for name, found in hashes.items()}


def wrong_file(path: Path, files: Mapping[str, Listed], prefix: str = "") -> str:
    """Return the first listed file (of one array) that is missing or cut, or ""."""
    for name, listed in files.items():
        if name.startswith(prefix):
            try:
                found = (path / name).stat()
            except OSError:
                return name
            cut = listed.size is not None and found.st_size != listed.size
            if cut or not stat.S_ISREG(found.st_mode):
                return name
    return ""


class SealedStore(Store):
    """A store on disk, read only, of which zarr sees what the root lists.

    Parameters
    ----------
    path : Path — of the store.
    attrs : mapping — from `read_root`: the root that is believed from now on.
    files : mapping or None — a part of `listed_files`, all by default.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(
        self,
        path: Path,
        attrs: Mapping[str, Any],
        files: Mapping[str, Listed] | None = None,
    ) -> None:
        super().__init__(read_only=True)
        self.path = path
        self.files = listed_files(attrs) if files is None else files
        self._root = {**_GROUP, "attributes": dict(attrs)}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SealedStore)
            and (self.path, self.files) == (other.path, other.files)
            and self._root == other._root
        )

    def __str__(self) -> str:
        return f"file://{self.path.as_posix()}"

    def read(self, key: str) -> bytes | None:
        """Return a file's content; None for what is not believed to be there.

        Raises
        ------
        Damaged — if a listed file is not what was written.
        """
        if key == ROOT:
            return json.dumps(self._root).encode()
        array, _, name = key.rpartition("/")
        listed = self.files.get(key)
        if listed is None:
            if name.startswith("c") and f"{array}/{ROOT}" in self.files:
                raise Damaged(f"an array {array} that has more chunks than are listed")
            return None
        most = _LARGEST_METADATA if listed.size is None else listed.size
        try:
            content = _read(self.path / key, most)
        except OSError as err:
            raise Damaged(f"damaged {key} ({err.strerror or err})") from err
        if listed.size is not None and len(content) != listed.size:
            raise Damaged(f"damaged {key} ({len(content)} bytes of {listed.size})")
        if listed.sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise Damaged(f"damaged {key} (another hash)")
        if name == ROOT:
            self._check_array(array, content)
        return content

    def check_metadata(self) -> None:
        """Read the metadata of all arrays: zarr prints tracebacks where some are bad.

        Raises
        ------
        Damaged — if one of them is not what was written.
        """
        for key in self.files:
            if key.endswith(f"/{ROOT}"):
                self.read(key)

    def _check_array(self, name: str, content: bytes) -> None:
        """Refuse arrays that we do not write: other codecs, types, or sizes."""
        meta = _parse(content, f"{name}/{ROOT}")
        try:
            grid = meta["chunk_grid"]["configuration"]["chunk_shape"]
            shape = meta["shape"]
            plain = (
                (meta["zarr_format"], meta["node_type"]) == (3, "array")
                and _NUMBERS.fullmatch(meta["data_type"]) is not None
                and {codec["name"] for codec in meta["codecs"]} <= _CODECS
                and all(type(n) is int and n > 0 for n in grid)
                and all(type(n) is int and n >= 0 for n in shape)
                and math.prod(grid) * 8 <= _LARGEST_CHUNK
            )
            n_chunks = math.prod(
                -(-n // size) for n, size in zip(shape, grid, strict=True)
            )
        except (LookupError, TypeError, ValueError, ArithmeticError) as err:
            raise Damaged(f"damaged {name}/{ROOT} ({err!r})") from err
        there = sum(key.startswith(f"{name}/c") for key in self.files)
        if not plain or n_chunks != there:
            raise Damaged(f"damaged {name}/{ROOT} (no array of {there} chunks of ours)")

    # -- what zarr asks ------------------------------------------------------------

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return a whole file: the hash is that of the whole."""
        assert byte_range is None  # only shards are read in part: `_CODECS` has none
        content = await asyncio.to_thread(self.read, key)
        return None if content is None else prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> _Buffers:
        """Return several whole files."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether a file is listed."""
        return key == ROOT or key in self.files

    async def list(self) -> AsyncIterator[str]:
        """Yield what is listed."""
        for key in (ROOT, *self.files):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield what is listed and starts so."""
        for key in (ROOT, *self.files):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of what is listed in a folder."""
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        names = (
            k.removeprefix(start) for k in (ROOT, *self.files) if k.startswith(start)
        )
        for name in dict.fromkeys(name.partition("/")[0] for name in names):
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: it is read only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: it is read only."""
        self._check_writable()


def _attributes_hash(attrs: Mapping[str, Any]) -> str:
    covered = {key: value for key, value in attrs.items() if key != SEAL}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _parse(content: bytes, name: str = ROOT) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as err:
        raise Damaged(f"a {name} that is no JSON ({str(err)[:80]})") from err


def _read(path: Path, most: int) -> bytes:
    """Return a file's bytes, one more than ``most`` at most."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(f"a {path.name} that is no file")
    if found.st_size > most:
        raise Damaged(f"a {path.name} of {found.st_size:,} bytes, {most:,} at most")
    with path.open("rb") as file:
        return file.read(most + 1)
