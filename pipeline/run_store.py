"""One Zarr store a run: written whole or not at all, verified when opened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from pipeline.arrays import (
    chunk_sizes,
    create_array,
    hash_array,
    write_rows,
    wrong_chunks,
)
from pipeline.atomic import partial_directory, publish
from pipeline.schema import check_schema

# What zarr and JSON readers raise on metadata that is broken.
BROKEN = (ValueError, OSError, LookupError, TypeError, AttributeError)
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
            str(k): v for k, v in ds.attrs.items() if k not in MARKERS
        }
        attrs["chunks"] = chunk_sizes(partial)
        group.attrs.update(attrs)
        marker: dict[str, Any] = {"variables": hashes, "complete": True}
        marker["content_sha256"] = _content_hash(hashes, attrs)
        group.attrs.update(marker)
        publish(partial, path)
    return path


MARKERS = ("complete", "content_sha256", "chunks", "variables")


def open_run(path: str | Path) -> xr.Dataset:
    """Open and load a run store, refusing one that is incomplete or damaged.

    Raises
    ------
    FileNotFoundError — if there is nothing at ``path``.
    ValueError — if the store has no completion marker or was changed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"`run` must be an existing run store; got {path}. See `ndcao runs`."
        )
    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
        attrs: dict[str, Any] = dict(group.attrs)
    except BROKEN as err:
        raise ValueError(
            f"`run` must be a run store; got {path}: {err}. {REMEDY}"
        ) from err
    if attrs.get("complete") is not True or any(m not in attrs for m in MARKERS):
        raise ValueError(
            f"`run` must be complete; got {path} without its completion marker. "
            f"{REMEDY}"
        )
    bad = wrong_chunks(path, attrs["chunks"])
    if bad:
        raise ValueError(
            f"`run` must be whole; got {path} with damaged {bad[0]}. {REMEDY}"
        )
    try:
        hashes = {}
        for name in attrs["variables"]:
            array = group[name]
            assert isinstance(array, zarr.Array)
            hashes[name] = hash_array(array)
        ds: xr.Dataset = xr.open_zarr(path, consolidated=False, chunks=None).load()
    except (*BROKEN, RuntimeError) as err:
        raise ValueError(f"`run` must be whole; got {path}: {err}. {REMEDY}") from err
    covered = {k: v for k, v in attrs.items() if k not in MARKERS or k == "chunks"}
    if _content_hash(hashes, covered) != attrs["content_sha256"]:
        raise ValueError(
            f"`run` must be unchanged; got {path} with another hash. {REMEDY}"
        )
    return ds


def _content_hash(hashes: dict[str, str], attrs: dict[str, Any]) -> str:
    text = json.dumps([hashes, attrs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
