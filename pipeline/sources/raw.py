"""What every reader hands over: two splits that stream, and the facts about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.sources.notes import Notes

Batch = tuple[np.ndarray, np.ndarray]  # images (m, C, H, W), labels (m,) int64

MAX_UNPACKED_BYTES = 4 * 2**30  # what one file or archive may unpack to
MAX_IMAGE_BYTES = 32 * 2**20  # one image, decoded
MAX_CLASSES = 65_536
MAX_SAMPLES = 10_000_000  # of one split; labels and names are held in memory

# Versions of readers, by the first word of ``RawDataset.source``; 1 for all others. One
# goes up when the same files give other pixels, labels or another order than before.
READERS = {"image-folder": 2}


@dataclass(frozen=True, slots=True)
class RawSplit:
    """One split of a raw data set, read in order and in pieces.

    ``batches(rows, limit)`` yields pieces of at most ``rows`` samples, ``limit`` in
    all; the reader raises ``ValueError`` where the raw data turn out to be wrong, at
    the latest when the iterator ends (a checksum covers what is past ``limit`` too).
    """

    n_samples: int
    batches: Callable[[int, int], Iterator[Batch]]


@dataclass(frozen=True, slots=True)
class RawDataset:
    """A raw data set: its splits, and the facts that the store records."""

    train: RawSplit
    test: RawSplit
    image_shape: tuple[int, int, int]  # (C, H, W)
    dtype: np.dtype  # uint8, or float32 in the values' own scale
    class_names: tuple[str, ...]
    source: str  # where the data came from, in words
    verified: bool  # every byte is covered by a published checksum
    val: RawSplit | None = None  # None: the end of train is taken
    reader: int = 1  # which version of the reader gives these samples
    notes: Notes = field(default_factory=Notes)  # complete when all splits were read


def checked(
    batches: Iterator[Batch],
    shape: tuple[int, int, int],
    n_classes: int,
    where: str,
) -> Iterator[Batch]:
    """Pass batches through, refusing a wrong image shape or a label out of range."""
    row = 0
    for images, labels in batches:
        if images.shape[1:] != shape or len(images) != len(labels):
            raise ValueError(
                f"`images` must all have shape {shape}; got {images.shape[1:]} at "
                f"sample {row} of {where}. Make them one size."
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"`labels` must be in 0…{n_classes - 1}; got {int(labels[at])} at "
                f"sample {row + at} of {where}. Correct the labels."
            )
        row += len(labels)
        yield images, labels


def in_pieces(images: np.ndarray, labels: np.ndarray) -> RawSplit:
    """Offer arrays that are in memory already as a split."""

    def batches(rows: int, limit: int) -> Iterator[Batch]:
        stop = min(limit, len(labels))
        for start in range(0, stop, rows):
            end = min(start + rows, stop)
            yield images[start:end], labels[start:end]

    return RawSplit(len(labels), batches)
