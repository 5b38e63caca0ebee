"""Writing a data store into an empty directory: stream, hash, read back, mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.arrays import (
    ContentHash,
    create_array,
    hash_array,
    piece_rows,
    write_rows,
)
from pipeline.data_store import FORMAT, KIND, content_hash
from pipeline.moments import Moments
from pipeline.sample_notes import Seen, note_copies, note_missing_classes
from pipeline.sealed import seal
from pipeline.sources.raw import Batch, RawDataset, RawSplit

Progress = Callable[[str, int, int], None]


def write_store(
    folder: Path,
    raw: RawDataset,
    *,
    name: str,
    origin: str | None,
    former: list[str],
    limits: tuple[int | None, int | None],
    val_fraction: float,
    progress: Progress | None,
) -> None:
    """Write ``raw`` into ``folder``, read it back, and write the marker last.

    Parameters
    ----------
    folder : Path — an empty directory.
    raw : RawDataset — its splits are read once.
    name : str — recorded as the data set's name.
    origin : str or None — the place of the raw files, where no checksum covers them.
    former : list of str — content hashes that older readers gave the same source.
    limits : (int or None, int or None) — how many samples of train and of test to keep.
    val_fraction : float — in [0, 1).
    progress : callable or None — see ``pipeline.store.ingest``.

    Raises
    ------
    ValueError — if a split ends up empty, or the raw data turn out wrong.
    RuntimeError — if what was written does not read back.
    """
    counts = [
        split.n_samples if limit is None else min(limit, split.n_samples)
        for split, limit in zip((raw.train, raw.test), limits, strict=True)
    ]
    train = raw.train
    if raw.val is None:
        n_val = math.floor(counts[0] * val_fraction + 0.5)
    else:
        n_val = raw.val.n_samples
        train = _one_after_the_other(train, counts[0], raw.val)
        counts[0] += n_val
    n_train = counts[0] - n_val
    if n_train < 1 or counts[1] < 1:
        raise ValueError(
            "`source` must leave one or more samples to train and to test on; got "
            f"{n_train} and {counts[1]} from {raw.source}. Raise the limits or lower "
            "`val_fraction`."
        )
    group = zarr.create_group(str(folder), attributes={"kind": KIND, "format": FORMAT})
    scale = 255 if raw.dtype == np.uint8 else 1
    moments = Moments(raw.image_shape[0], scale)
    count = _Counter("write", sum(counts), progress)
    seen, seen_test = Seen(), Seen()

    def observe_train(images: np.ndarray, labels: np.ndarray, start: int) -> None:
        moments.add(images[: max(0, n_train - start)])
        seen.add(images, labels)

    def observe_test(images: np.ndarray, labels: np.ndarray, start: int) -> None:
        seen_test.add(images, labels)

    variables = {
        **_write_split(group, "train", raw, train, counts[0], observe_train, count),
        **_write_split(group, "test", raw, raw.test, counts[1], observe_test, count),
    }
    if not raw.verified:
        note_copies(seen, seen_test, raw.notes)
    by_split = {"train": seen.labels[:n_train], "val": seen.labels[n_train:]}
    by_split["test"] = seen_test.labels
    note_missing_classes(by_split, raw.class_names, raw.notes)
    _read_back(group, variables, folder, _Counter("check", 2 * sum(counts), progress))
    attrs: dict[str, Any] = {
        "kind": KIND,
        "format": FORMAT,
        "name": name,
        "task": "classification",
        "image_shape": list(raw.image_shape),
        "class_names": list(raw.class_names),
        "n_train": n_train,
        "n_val": n_val,
        "n_test": counts[1],
        "mean": moments.mean,
        "std": moments.std,
        "pixel_scale": float(scale),
        "source": raw.source,
        "origin": origin,
        "verified": raw.verified,
        "reader": raw.reader,
        "former": former,
        "notes": raw.notes.sentences(),
        "variables": variables,
    }
    attrs |= {"complete": True, "content_sha256": content_hash(attrs)}
    seal(group, folder, attrs)


class _Counter:
    """Adds up rows and passes them on to whoever shows progress."""

    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self._stage, self._total, self._progress = stage, total, progress
        self._done = 0

    def __call__(self, n_rows: int) -> None:
        self._done += n_rows
        if self._progress is not None:
            self._progress(self._stage, self._done, self._total)


def _write_split(
    group: zarr.Group,
    name: str,
    raw: RawDataset,
    split: RawSplit,
    n_samples: int,
    observe: Callable[[np.ndarray, np.ndarray, int], None],
    count: _Counter,
) -> dict[str, str]:
    """Write one split; return the content hashes of its two variables."""
    shape = (n_samples, *raw.image_shape)
    dims = (f"{name}_sample", "channel", "y", "x")
    images = create_array(
        group, f"{name}_image", shape, raw.dtype, dims, {"long_name": "pixel value"}
    )
    labels = create_array(
        group,
        f"{name}_label",
        shape[:1],
        np.dtype("<i8"),
        dims[:1],
        {"long_name": "class, as an index into the attribute class_names"},
    )
    image_hash = ContentHash(raw.dtype, raw.image_shape)
    rows = piece_rows(shape, raw.dtype)
    all_labels = np.empty(n_samples, dtype=np.int64)
    start = 0
    for pixels, classes in _regroup(split.batches(rows, n_samples), rows, raw):
        stop = start + len(classes)
        write_rows(images, start, pixels)
        image_hash.update(pixels)
        observe(pixels, classes, start)
        all_labels[start:stop] = classes
        count(stop - start)
        start = stop
    if start != n_samples:
        raise ValueError(
            f"`source` must hold {n_samples} samples to {name} on; got {start} from "
            f"{raw.source}. Fetch the raw files again."
        )
    write_rows(labels, 0, all_labels)
    label_hash = ContentHash(all_labels.dtype, ())
    label_hash.update(all_labels)
    return {f"{name}_image": image_hash.sha256, f"{name}_label": label_hash.sha256}


def _one_after_the_other(train: RawSplit, n_train: int, val: RawSplit) -> RawSplit:
    """Return the first ``n_train`` samples of one split and all of another."""

    def batches(rows: int, limit: int) -> Iterator[Batch]:
        yield from train.batches(rows, min(n_train, limit))
        yield from val.batches(rows, max(0, limit - n_train))

    return RawSplit(n_train + val.n_samples, batches)


def _regroup(batches: Iterator[Batch], rows: int, raw: RawDataset) -> Iterator[Batch]:
    """Yield the same samples in pieces of exactly ``rows``, but for the last."""
    images = np.empty((rows, *raw.image_shape), dtype=raw.dtype)
    labels = np.empty(rows, dtype=np.int64)
    held = 0
    for pixels, classes in batches:
        used = 0
        while used < len(classes):
            take = min(rows - held, len(classes) - used)
            images[held : held + take] = pixels[used : used + take]
            labels[held : held + take] = classes[used : used + take]
            held, used = held + take, used + take
            if held == rows:
                yield images, labels
                held = 0
    if held:
        yield images[:held], labels[:held]


def _read_back(
    group: zarr.Group, variables: dict[str, str], folder: Path, count: _Counter
) -> None:
    for name, written in variables.items():
        array = group[name]
        assert isinstance(array, zarr.Array)  # we created it above
        read = hash_array(array, count)
        if read != written:
            raise RuntimeError(
                f"`store` must read back as written; got other content in {name} at "
                f"{folder}. Check the disk and ingest again."
            )
