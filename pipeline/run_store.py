"""One Zarr store a run: written whole or not at all, verified when opened."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from pipeline.arrays import (
    ContentHash,
    chunk_sizes,
    create_array,
    hash_array,
    write_rows,
)
from pipeline.atomic import partial_directory, publish
from pipeline.schema import check_schema
from pipeline.sealed import (
    FILES,
    SEAL,
    UNREADABLE,
    Damaged,
    SealedStore,
    check_seal,
    is_sealed,
    listed_files,
    read_root,
    seal,
    wrong_file,
)

MARKERS = ("complete", "content_sha256", "chunks", "variables")
OF_A_RUN = {"run_id", "config"}  # attributes that no other store has
REMEDY = "Train it again with --again, or restore the store from a copy."


def write_run(ds: xr.Dataset, path: Path) -> Path:
    """Write a run's dataset as a Zarr v3 store with checksums and a completion marker.

    The store appears at ``path`` in one step; an older run there is replaced.

    Raises
    ------
    ValueError — if the dataset does not follow the schema.
    RuntimeError — if the disk is full; what was there before stays.
    """
    check_schema(ds)
    with partial_directory(path) as partial:
        group = zarr.create_group(str(partial), zarr_format=3)
        hashes = {}
        for name, data in ds.variables.items():
            values = np.asarray(data.values)
            dims = tuple(str(dim) for dim in data.dims)
            array = create_array(
                group, str(name), values.shape, values.dtype, dims, data.attrs
            )
            write_rows(array, 0, values)
            hashes[str(name)] = hash_array(array)
        attrs: dict[str, Any] = {
            str(k): v for k, v in ds.attrs.items() if k not in (*MARKERS, FILES, SEAL)
        }
        attrs["chunks"] = chunk_sizes(partial)
        marker: dict[str, Any] = {"variables": hashes, "complete": True}
        marker["content_sha256"] = _content_hash(hashes, attrs)
        seal(group, partial, attrs | marker)
        publish(partial, path)
    return path


class RunChanged(ValueError):
    """A run store is not, or not wholly, what was written; ``why`` says so briefly."""

    def __init__(self, path: Path, error: BaseException) -> None:
        self.why = str(error)
        if not isinstance(error, Damaged):
            self.why = f"{type(error).__name__}: {' '.join(self.why.split())}"
        super().__init__(
            f"`run` must be complete and unchanged; got {path} with {self.why}. "
            f"{REMEDY}"
        )

    def __reduce__(self) -> tuple[type[ValueError], tuple[str]]:
        return ValueError, (str(self),)  # where it crosses processes


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A complete run as it was when it was opened: what is read later must be that."""

    path: Path
    attrs: Mapping[str, Any]
    store: SealedStore

    def array(self, name: str) -> zarr.Array[Any]:
        """Return a variable as a Zarr array whose chunks are checked as they are read.

        Those of a store without a seal are not: use `read`.

        Raises
        ------
        RunChanged — if its metadata are not what was written.
        """
        try:
            return zarr.open_array(self.store, path=name, mode="r", zarr_format=3)
        except UNREADABLE as err:
            raise RunChanged(self.path, err) from err

    def read(self, names: Sequence[str]) -> list[np.ndarray]:
        """Return the values of some variables.

        Raises
        ------
        RunChanged — if one of them is not what was written.
        """
        return read_variables([(self, name) for name in names])


def stored_run(path: Path, variables: Collection[str] | None = None) -> StoredRun:
    """Open a run without reading values; that all files are there is checked.

    Parameters
    ----------
    variables : those that are to be read, all by default.

    Raises
    ------
    FileNotFoundError — if there is nothing at ``path``.
    RunChanged — if the store has no completion marker, was changed, or lacks a file.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`run` must be an existing run store; got {path}. See `ndcao runs`."
        )
    try:
        attrs = run_attributes(path)
        files = listed_files(attrs)
        if wrong := wrong_file(path, files):
            raise Damaged(f"damaged {wrong} (missing, or cut)")
    except UNREADABLE as err:
        raise RunChanged(path, err) from err
    if variables is not None:  # thousands of runs may be open: keep what is needed
        files = {k: v for k, v in files.items() if k.partition("/")[0] in variables}
        attrs = {k: v for k, v in attrs.items() if k not in ("chunks", FILES)}
    return StoredRun(path, attrs, SealedStore(path, attrs, files))


def run_attributes(path: Path) -> dict[str, Any]:
    """Return a run's attributes, which are those that were written.

    Raises
    ------
    Damaged — if it has no completion marker, or one was changed.
    """
    attrs = read_root(path)
    if attrs.get("complete") is not True or any(m not in attrs for m in MARKERS):
        raise Damaged("no completion marker")
    check_seal(attrs)
    if not is_sealed(attrs) and _old_hash(attrs) != attrs["content_sha256"]:
        raise Damaged("attributes in zarr.json with another hash")
    return attrs


def open_run(path: str | Path) -> xr.Dataset:
    """Open and load a run store, refusing one that is incomplete or damaged.

    Raises
    ------
    FileNotFoundError — if there is nothing at ``path``.
    RunChanged — if the store has no completion marker or was changed.
    ValueError — if it is a whole store of something else, such as data.
    """
    run = stored_run(Path(path))
    if not run.attrs.keys() >= OF_A_RUN:
        raise ValueError(
            f"`run` must be a run that ndcao kept; got {path}, a Zarr store of "
            "something else. See `ndcao runs`."
        )
    try:
        run.store.check_metadata()
        ds: xr.Dataset = xr.open_zarr(run.store, consolidated=False, chunks=None).load()
        if odd := run.attrs["variables"].keys() ^ ds.variables.keys():
            raise Damaged(f"other variables than are listed: {', '.join(sorted(odd))}")
        for name, values in ds.variables.items():
            _check_values(run, str(name), np.asarray(values.values))
    except UNREADABLE as err:
        raise RunChanged(run.path, err) from err
    return ds


def read_variables(wanted: Sequence[tuple[StoredRun, str]]) -> list[np.ndarray]:
    """Read variables of many runs at once: one wait for zarr's loop, not two each.

    Raises
    ------
    RunChanged — if one of them is not what was written; its store is named.
    """
    from zarr.core.sync import sync

    async def read(run: StoredRun, name: str) -> np.ndarray:
        from zarr.api.asynchronous import open_array

        try:
            array = await open_array(
                store=run.store, path=name, mode="r", zarr_format=3
            )
            values = np.asarray(await array.getitem(...))
            _check_values(run, name, values)
        except UNREADABLE as err:
            raise RunChanged(run.path, err) from err
        return values

    async def read_all() -> list[np.ndarray]:
        return await asyncio.gather(*(read(run, name) for run, name in wanted))

    return sync(read_all())


def _check_values(run: StoredRun, name: str, values: np.ndarray) -> None:
    """Refuse values of a store without a seal that are not those of its hashes."""
    if is_sealed(run.attrs):
        return  # every file was checked when it was read
    content = ContentHash(values.dtype, values.shape[1:])
    content.update(values)
    if content.sha256 != run.attrs["variables"][name]:
        raise Damaged(f"damaged {name} (another hash)")


def _old_hash(attrs: Mapping[str, Any]) -> str:
    """Return the hash that a store without a seal has of its attributes."""
    covered = {k: v for k, v in attrs.items() if k not in MARKERS or k == "chunks"}
    return _content_hash(attrs["variables"], covered)


def _content_hash(hashes: Mapping[str, str], attrs: Mapping[str, Any]) -> str:
    text = json.dumps([hashes, attrs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
