"""Class folders of images, in a folder or an archive, decoded a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.sources.classes import check_class_names
from pipeline.sources.layout import Layout, Sample, arrange
from pipeline.sources.members import Members, open_members
from pipeline.sources.notes import Notes
from pipeline.sources.ordering import held_out, interleaved
from pipeline.sources.pictures import Picture, decode
from pipeline.sources.raw import READERS, Batch, RawDataset, RawSplit


@contextmanager
def open_image_folder(source: Path) -> Iterator[RawDataset]:
    """Read ``train/<class>/*`` and ``test/<class>/*``, or ``<class>/*``.

    Classes are numbered in alphabetical order. Within a split the classes are
    interleaved, so that the first N samples, and the last ones, are balanced as the
    whole is. Without a ``test`` folder one image in six of every class is for testing.
    The first image decides between grey (one channel) and RGB; all must be of its size.

    Parameters
    ----------
    source : Path — a folder, a zip, or a tar, gzip or not.

    Raises
    ------
    FileNotFoundError — if there is no such folder or file.
    ValueError — if the layout is another, a name is unsafe, the archive unpacks past
        the limit, a class has no image, or an image is damaged or of another size.
    """
    if source.suffix.lower() == ".npz":
        raise ValueError(
            f"`source` must hold image files; got arrays, {source}. Ingest them as "
            f"npz: ndcao ingest npz --from {source}."
        )
    notes = Notes()
    with open_members(source, notes) as members:
        yield _dataset(arrange(members, notes), members, notes)


def _dataset(layout: Layout, members: Members, notes: Notes) -> RawDataset:
    check_class_names(layout.classes, str(members.where))
    train, test = layout.splits["train"], layout.splits.get("test")
    if test is None:
        mask = held_out(np.array([label for _, label in train]))
        test = [s for s, for_test in zip(train, mask, strict=True) if for_test]
        train = [s for s, for_test in zip(train, mask, strict=True) if not for_test]
    if not test:
        raise ValueError(
            "`source` must hold images for testing, or six or more of a class; got "
            f"{len(train)} images in all at {members.where}. Add images or a test "
            "folder."
        )
    train = _interleave(train)
    first = decode(members.read(train[0][0]), _where(members, train[0][0]), Notes())

    def split(samples: list[Sample]) -> RawSplit:
        def batches(rows: int, limit: int) -> Iterator[Batch]:
            for start in range(0, min(limit, len(samples)), rows):
                chosen = samples[start : min(start + rows, limit)]
                yield _read(chosen, first, members, notes)

        return RawSplit(len(samples), batches)

    val = layout.splits.get("val")
    held = "" if "test" in layout.splits else ", one in six of each class for testing"
    return RawDataset(
        train=split(train),
        val=None if val is None else split(_interleave(val)),
        test=split(_interleave(test)),
        image_shape=first.shape,
        dtype=np.dtype(np.uint8),
        class_names=layout.classes,
        source=f"image-folder: {members.where.resolve().name}{held}",
        verified=False,
        reader=READERS["image-folder"],
        notes=notes,
    )


def _read(
    chosen: Sequence[Sample], first: Picture, members: Members, notes: Notes
) -> Batch:
    images = np.empty((len(chosen), *first.shape), dtype=np.uint8)
    for image, (name, _) in zip(images, chosen, strict=True):
        where = _where(members, name)
        picture = decode(members.read(name), where, notes)
        same_size = picture.shape[1:] == first.shape[1:]
        if not same_size or (picture.mode, first.mode) == ("RGB", "L"):
            raise ValueError(
                f"`images` must all be {first}; got {picture} at {where}. Convert them "
                "to one size and kind."
            )
        image[:] = picture.pixels  # a grey one is the same in all three colours
    return images, np.array([label for _, label in chosen], dtype=np.int64)


def _where(members: Members, name: str) -> str:
    return f"{members.where}: {name}"


def _interleave(samples: list[Sample]) -> list[Sample]:
    order = interleaved(np.array([label for _, label in samples]))
    return [samples[int(i)] for i in order]
