"""Reading data stores: nothing is handed out that is not what was ingested."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from pipeline.arrays import ContentHash, hash_array, read_rows
from pipeline.places import wrong_name
from pipeline.sealed import (
    UNREADABLE,
    Damaged,
    Listed,
    SealedStore,
    check_seal,
    is_sealed,
    listed_files,
    read_root,
    wrong_file,
)

KIND = "ndcao-data-store"
FORMAT = 1
VARIABLES = ("train_image", "train_label", "test_image", "test_label")
# What the content hash covers besides the values of the variables.
COVERED = (
    *("format", "task", "image_shape", "class_names", "n_train", "n_val", "n_test"),
    *("mean", "std", "pixel_scale", "variables"),
)

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class DataStore:
    """An ingested data set, opened by :func:`open_store`.

    ``val`` is the last part of the raw training data; ``train`` is what comes before.
    Divide images by ``pixel_scale`` to have uint8 pixels in [0, 1]; ``mean`` and
    ``std`` are those of ``train`` on that scale, one value a channel (a constant
    channel has ``std`` 1, so that dividing by it is safe).
    """

    path: Path
    name: str  # known name, or that of the store
    task: str  # "classification"
    image_shape: tuple[int, int, int]  # (C, H, W)
    class_names: tuple[str, ...]
    n_train: int
    n_val: int
    n_test: int
    mean: tuple[float, ...]  # (C,)
    std: tuple[float, ...]  # (C,)
    pixel_scale: float  # 255 for uint8 images, 1 for float32
    content_sha256: str
    verified: bool  # every raw byte was covered by a published checksum
    source: str  # where the raw data came from, in words
    hashes: Mapping[str, str]  # variable → sha256 of its values
    files: Mapping[str, Listed]  # what is to be read, and nothing else
    sealed: bool  # every file is checked when it is read

    @property
    def n_classes(self) -> int:
        """The number of classes; labels are 0…n_classes − 1."""
        return len(self.class_names)

    def n_samples(self, split: Split) -> int:
        """Return how many samples a split has."""
        start, stop = self._rows(split)
        return stop - start

    def images(
        self, split: Split, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """Return images ``start`` to ``stop`` of a split.

        Returns
        -------
        (n, C, H, W) array — uint8, or float32 where the raw data were floating point.

        Raises
        ------
        ValueError — if a chunk is missing or damaged.
        """
        return self._read("image", split, start, stop)

    def labels(
        self, split: Split, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """Return the labels of the same samples, (n,) int64."""
        return self._read("label", split, start, stop)

    def load(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return all images and labels of ``"train"``, ``"val"`` or ``"test"``.

        They are those of ``content_sha256``, whatever became of the store meanwhile.

        Raises
        ------
        ValueError — if the store holds others now.
        """
        if self.sealed:
            return self.images(split), self.labels(split)
        first, last = self._rows(split)
        part = "test" if split == "test" else "train"
        images, labels = self._whole(f"{part}_image"), self._whole(f"{part}_label")
        return images[first:last].copy(), labels[first:last].copy()

    def _rows(self, split: Split) -> tuple[int, int]:
        if split == "train":
            return 0, self.n_train
        if split == "val":
            return self.n_train, self.n_train + self.n_val
        if split == "test":
            return 0, self.n_test
        raise ValueError(
            f"`split` must be train, val or test; got {split!r}. Name one of them."
        )

    def _read(
        self, what: str, split: Split, start: int, stop: int | None
    ) -> np.ndarray:
        first, last = self._rows(split)
        n = last - first
        if not 0 <= start <= (n if stop is None else stop) <= n:
            raise ValueError(
                f"`start` and `stop` must be in 0…{n} of {split}; got {start}…{stop}. "
                "Ask for samples that the split has."
            )
        variable = f"{'test' if split == 'test' else 'train'}_{what}"
        rows = slice(first + start, last if stop is None else first + stop)
        try:
            return np.asarray(self._array(variable)[rows])
        except UNREADABLE as err:
            raise self._unreadable(variable, err) from err

    def _whole(self, variable: str) -> np.ndarray:
        """Return a variable of a store without a seal, hashed as it is read."""
        try:
            array = self._array(variable)
            content = ContentHash(np.dtype(array.dtype), array.shape[1:])
            out, done = np.empty(array.shape, array.dtype), 0
            for rows in read_rows(array):
                content.update(rows)
                out[done : done + len(rows)] = rows
                done += len(rows)
        except UNREADABLE as err:
            raise self._unreadable(variable, err) from err
        self._compare(variable, content.sha256)
        return out

    def verify(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Read everything once and compare the hashes of all values.

        Raises
        ------
        ValueError — if one is another.
        """
        total = 2 * (self.n_train + self.n_val + self.n_test)
        done = 0

        def on_rows(n_rows: int) -> None:
            nonlocal done
            done += n_rows
            if progress is not None:
                progress("check", done, total)

        for variable in VARIABLES:
            try:
                got = hash_array(self._array(variable), on_rows)
            except UNREADABLE as err:
                raise self._unreadable(variable, err) from err
            self._compare(variable, got)

    def _array(self, variable: str) -> zarr.Array[Any]:
        store = SealedStore(self.path, {}, self.files)
        return zarr.open_array(store, path=variable, mode="r", zarr_format=3)

    def _compare(self, variable: str, got: str) -> None:
        if got != self.hashes[variable]:
            raise damaged(self.path, self.name, f"{variable} with hash {got[:16]}…")

    def _unreadable(self, variable: str, err: BaseException) -> ValueError:
        what = str(err) if isinstance(err, Damaged) else f"{variable}: {err}"
        return damaged(self.path, self.name, what)


def open_store(
    path: str | Path,
    verify: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> DataStore:
    """Open a data store, refusing one that is not complete and unchanged.

    Parameters
    ----------
    path : str or Path — the store, such as ``data/mnist.zarr``.
    verify : bool — read everything once and compare the content's hash (0.3 s for
        MNIST); without it the marker, the metadata and the list of files are checked,
        and reading still refuses what was not ingested.
    progress : callable or None — called with ("check", samples done, samples in all).

    Returns
    -------
    DataStore — picklable; it holds no data and no open file.

    Raises
    ------
    FileNotFoundError — if there is no such store.
    ValueError — if it is no data store, has no completion marker, or was changed.
    """
    path = Path(path)
    attrs = read_attributes(path)
    name = str(attrs.get("name", path.stem))
    if not attrs.get("complete"):
        raise damaged(path, name, "no completion marker: its ingest did not end")
    try:
        check_seal(attrs)
        covered = content_hash(attrs)
        store = _from_attributes(path, attrs, listed_files(attrs))
    except Damaged as err:
        raise damaged(path, name, str(err)) from err
    except (LookupError, TypeError, ValueError, AttributeError) as err:
        raise damaged(path, name, f"metadata that do not fit: {err}") from err
    if why := wrong_name(store.name):
        raise damaged(path, path.stem, f"a name with {why}")
    if covered != store.content_sha256:
        raise damaged(path, name, f"metadata with hash {covered[:16]}…")
    if wrong := wrong_file(path, store.files):
        raise damaged(path, name, f"missing or cut {wrong}")
    if verify:
        store.verify(progress)
    return store


def content_hash(attrs: Mapping[str, Any]) -> str:
    """Return the sha256 over the covered metadata and the variables' own hashes."""
    covered = {key: attrs[key] for key in COVERED}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a data store's root, complete or not.

    Raises
    ------
    FileNotFoundError — if there is nothing at ``path``.
    ValueError — if it is something else than a data store.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`store` must be an existing data store; got {path}. "
            f"Ingest it first: ndcao ingest NAME --store {path}."
        )
    try:
        attrs = read_root(path)
        if attrs["kind"] != KIND or attrs["format"] != FORMAT:
            raise Damaged(f"kind {attrs['kind']}, format {attrs['format']}")
    except UNREADABLE as err:
        raise ValueError(
            f"`store` must be a data store written by `ndcao ingest`; got {path} "
            f"({err if isinstance(err, Damaged) else repr(err)}). Ingest again, or "
            "name another store."
        ) from err
    return attrs


def damaged(path: Path, name: str, what: str) -> ValueError:
    """Return the error for a store that is not what was ingested."""
    return ValueError(
        f"`store` must be complete and unchanged; got {what} at {path}. "
        f"Ingest it again: ndcao ingest … --store {path} (it was {name})."
    )


def _from_attributes(
    path: Path, attrs: Mapping[str, Any], files: Mapping[str, Listed]
) -> DataStore:
    channels, height, width = attrs["image_shape"]
    return DataStore(
        path=path,
        name=str(attrs["name"]),
        task=str(attrs["task"]),
        image_shape=(int(channels), int(height), int(width)),
        class_names=tuple(attrs["class_names"]),
        n_train=int(attrs["n_train"]),
        n_val=int(attrs["n_val"]),
        n_test=int(attrs["n_test"]),
        mean=tuple(attrs["mean"]),
        std=tuple(attrs["std"]),
        pixel_scale=float(attrs["pixel_scale"]),
        content_sha256=str(attrs["content_sha256"]),
        verified=bool(attrs["verified"]),
        source=str(attrs["source"]),
        hashes={name: str(attrs["variables"][name]) for name in VARIABLES},
        files=files,
        sealed=is_sealed(attrs),
    )
