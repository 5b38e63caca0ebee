"""What the samples of a data set say of it: copies across splits, missing classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pipeline.sources.notes import Notes


class Seen:
    """Remembers what matters of samples that pass by: a digest and a label each."""

    def __init__(self) -> None:
        self._digests: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Add (m, C, H, W) images with their (m,) labels."""
        each = (hashlib.blake2b(x.tobytes(), digest_size=8).digest() for x in images)
        self._digests.append(np.frombuffer(b"".join(each), dtype="<u8"))
        self._labels.append(labels.copy())

    @property
    def digests(self) -> np.ndarray:
        """Eight bytes of a hash of every image, (n,) uint64."""
        return np.concatenate(self._digests)

    @property
    def labels(self) -> np.ndarray:
        """Every label, (n,) int64."""
        return np.concatenate(self._labels)


def note_copies(train: Seen, test: Seen, notes: Notes) -> None:
    """Note how many images are in test and in train or val as well."""
    copies = np.flatnonzero(np.isin(test.digests, train.digests))
    if len(copies):
        kind = "test images that are in train or val as well, pixel by pixel"
        notes.add(kind, f"the one at {copies[0]}", len(copies))


def note_missing_classes(
    splits: dict[str, np.ndarray], class_names: Sequence[str], notes: Notes
) -> None:
    """Note, for each split that has samples, the classes of which it has none."""
    for split, labels in splits.items():
        missing = np.setdiff1d(np.arange(len(class_names)), labels)
        if len(missing) and len(labels):
            kind = f"classes without a sample in {split}"
            notes.add(kind, class_names[missing[0]], len(missing))
