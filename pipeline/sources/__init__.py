"""Readers of raw image data: one module a format, all with the same answer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.sources.known import KNOWN
from pipeline.sources.raw import Batch, RawDataset, RawSplit

__all__ = ["NAMES", "Batch", "RawDataset", "RawSplit", "open_source"]

NAMES = ("digits", *KNOWN, "image-folder", "npz")


def open_source(
    name: str, source: Path | None, *, unverified: bool = False
) -> AbstractContextManager[RawDataset]:
    """Open raw data for reading, importing only what this format needs.

    Parameters
    ----------
    name : str — one of ``NAMES``.
    source : Path or None — where the raw files are; not used by ``digits``.
    unverified : bool — take a re-packed or partial copy of a known data set.

    Returns
    -------
    A context manager that gives a :class:`RawDataset`, readable until it ends.

    Raises
    ------
    ValueError — if the name is unknown, or a source is needed and missing.
    """
    if name not in NAMES:
        raise ValueError(
            f"`name` must be one of {', '.join(NAMES)}; got {name!r}. For images of "
            "your own use image-folder or npz with --from."
        )
    if name == "digits":
        from pipeline.sources.digits import open_digits

        if source is not None:
            raise ValueError(
                f"`digits` must come without --from; got {source}. Leave it out: the "
                "images are bundled with scikit-learn."
            )
        return open_digits()
    if source is None:
        raise ValueError(
            f"`source` must be given for {name}; got none. Name the files with --from."
        )
    if name == "cifar10":
        from pipeline.sources.cifar10 import open_cifar10

        return open_cifar10(source, unverified)
    if name == "npz":
        from pipeline.sources.npz import open_npz

        return open_npz(source)
    if name == "image-folder":
        from pipeline.sources.image_folder import open_image_folder

        return open_image_folder(source)
    from pipeline.sources.idx import open_idx

    return open_idx(name, source, unverified)
