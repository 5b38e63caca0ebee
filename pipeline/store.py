"""Ingest: raw images in, a verified Zarr v3 store out, whole or not at all.

Layout of a store, in plain Zarr v3 that xarray opens with ``consolidated=False``:

=============  ================================  =======================================
variable       dims                              dtype
=============  ================================  =======================================
train_image    train_sample, channel, y, x       uint8, or float32 from floating point
train_label    train_sample                      int64
test_image     test_sample, channel, y, x        as train_image
test_label     test_sample                       int64
=============  ================================  =======================================

``train_*`` hold the raw training data once: the first ``n_train`` rows are the split
``train``, the ``n_val`` rows after them ``val``. The root's attributes hold those
counts, ``n_test``, ``class_names``, ``image_shape``, ``mean`` and ``std`` (of
``train``, on the scale of ``pixel_scale``), ``task``, ``source`` and ``verified``; of
data without a checksum ``origin``; ``reader``, ``notes`` and ``former`` (see
``pipeline.replacing``); and, written last, the marker: ``complete``,
``content_sha256``, ``variables`` (name → sha256) and ``chunks`` (file → bytes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.arrays import chunk_sizes
from pipeline.atomic import partial_directory, publish
from pipeline.data_store import (
    COVERED,
    DataStore,
    open_store,
    read_attributes,
)
from pipeline.places import data_folder, given_path, resolve_store
from pipeline.replacing import (
    former_with,
    refuse_foreign,
    refuse_other_source,
    store_name,
    store_path,
)
from pipeline.sources import open_source
from pipeline.sources.known import KNOWN
from pipeline.store_writer import write_store

__all__ = [
    "DataStore",
    "StoreInfo",
    "data_folder",
    "ensure_store",
    "ingest",
    "open_store",
    "resolve_store",
]

ROUNDING = 1e-9  # more than moments of one data set ever differed by

Progress = Callable[[str, int, int], None]  # stage, done, total (0 = unknown)


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What an ingest did."""

    name: str
    path: Path
    status: Literal["created", "replaced", "identical"]
    verified: bool
    source: str
    n_train: int
    n_val: int
    n_test: int
    image_shape: tuple[int, int, int]  # (C, H, W)
    n_classes: int
    content_sha256: str
    size_bytes: int  # of the chunks, compressed
    notes: tuple[str, ...]  # what was left out, or read in a way one might not expect


def ingest(
    name: str,
    *,
    source: str | Path | None = None,
    store: str | Path | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    unverified: bool = False,
    replace: bool = False,
    val_fraction: float = 0.1,
    progress: Progress | None = None,
) -> StoreInfo:
    """Read raw images and write them as a verified store.

    The store is written beside its place, read back, hashed, marked complete and only
    then moved there; until then, and after any error, what was there is untouched.
    Memory stays below 400 MB whatever the data set, because it is read in pieces.

    Parameters
    ----------
    name : str — ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``image-folder``
        or ``npz``.
    source : path or None — the raw files; None downloads a known set.
    store : path or None — default ``data/<name>.zarr``, where for ``image-folder`` and
        ``npz`` the name is that of the source. See ``resolve_store``.
    limit_train, limit_test : int or None — keep the first N samples of the raw split.
    unverified : bool — take a re-packed or partial copy of a known set, and say so.
    replace : bool — replace a store that was made from another source, or whose moments
        an older version rounded otherwise.
    val_fraction : float — share of the (limited) training data, its end, for ``val``.
    progress : callable or None — called with stage ("download FILE", "write", "check"),
        what is done and what there is (bytes or samples; 0 = unknown).

    Returns
    -------
    StoreInfo — ``status`` is "identical" where the same content was there already.

    Raises
    ------
    ValueError, FileNotFoundError — if an argument or the raw data break a rule.
    ConnectionError — if a known set cannot be downloaded.
    RuntimeError — if the disk is full, or does not keep what is written.
    """
    _check_numbers(limit_train, limit_test, val_fraction)
    raw_path = None if source is None else given_path(source, "source")
    path = store_path(name, raw_path, store)
    refuse_foreign(path)
    if raw_path is None and name in KNOWN:
        from pipeline.download import download

        raw_path = download(name, data_folder() / "downloads", progress)
    with open_source(name, raw_path, unverified=unverified) as raw:
        called = name if name in {*KNOWN, "digits"} else store_name(path)
        # What a checksum covers is the same wherever it lies.
        place = None if raw.verified or raw_path is None else raw_path.resolve()
        origin = None if place is None else str(place)
        if not replace:
            refuse_other_source(path, called, raw.source, origin)
        former = former_with(path, raw.source, raw.reader)
        with partial_directory(path) as partial:
            write_store(
                partial,
                raw,
                name=called,
                origin=origin,
                former=former,
                limits=(limit_train, limit_test),
                val_fraction=val_fraction,
                progress=progress,
            )
            new = open_store(partial, verify=False)
            old = _existing(path)
            if old is not None and _same(path, partial, exactly=replace):
                return _info(path, old, "identical")
            replaced = path.exists()
            refuse_foreign(path)  # what came there meanwhile
            publish(partial, path)
    return _info(path, new, "replaced" if replaced else "created")


def ensure_store(name_or_path: str | Path, home: Path | None = None) -> Path:
    """Return the path of an existing store, ingesting ``digits`` on first use.

    Raises
    ------
    FileNotFoundError — if there is no such store.
    """
    path = resolve_store(name_or_path, home)
    if path.exists():
        return path
    if str(name_or_path) == "digits":
        return ingest("digits", store=path).path
    known = str(name_or_path) if str(name_or_path) in KNOWN else "NAME"
    raise FileNotFoundError(
        f"`dataset` must be an ingested data set; got {name_or_path}, no store at "
        f"{path}. Ingest it first: ndcao ingest {known} --store {path}."
    )


def _check_numbers(
    limit_train: int | None, limit_test: int | None, val_fraction: float
) -> None:
    for name, limit in (("limit_train", limit_train), ("limit_test", limit_test)):
        if limit is not None and limit < 1:
            raise ValueError(
                f"`{name}` must be 1 or more; got {limit}. Leave it out for all."
            )
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"`val_fraction` must be in [0, 1); got {val_fraction}. The default is 0.1."
        )


def _existing(path: Path) -> DataStore | None:
    try:
        return open_store(path)
    except (ValueError, FileNotFoundError):
        return None  # absent or broken: about to be replaced


def _same(old: Path, new: Path, *, exactly: bool) -> bool:
    """Say whether two whole stores hold the same, but for how moments were rounded.

    Earlier versions computed them in floating point, so that their last digits, and
    with them the content hash, depended on the machine: such a store keeps its hash.
    """
    a, b = read_attributes(old), read_attributes(new)
    if exactly:
        keys = ("content_sha256", "origin", "reader")
        return all(a.get(key) == b.get(key) for key in keys)
    alike = all(
        a.get(key) == b.get(key)
        for key in (*COVERED, "name", "verified", "source")
        if key not in {"mean", "std"}
    )
    return alike and all(
        math.isclose(x, y, rel_tol=ROUNDING, abs_tol=ROUNDING)
        for key in ("mean", "std")
        for x, y in zip(a[key], b[key], strict=True)
    )


def _info(
    path: Path, store: DataStore, status: Literal["created", "replaced", "identical"]
) -> StoreInfo:
    return StoreInfo(
        name=store.name,
        path=path,
        status=status,
        verified=store.verified,
        source=store.source,
        n_train=store.n_train,
        n_val=store.n_val,
        n_test=store.n_test,
        image_shape=store.image_shape,
        n_classes=store.n_classes,
        content_sha256=store.content_sha256,
        size_bytes=sum(chunk_sizes(path).values()),
        notes=tuple(read_attributes(path).get("notes", ())),
    )
