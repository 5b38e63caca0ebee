"""The arrays of an ``.npz`` by what they are, whatever people call them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.sources.npy import NpyArray
from pipeline.sources.streams import refuse_bomb

# Names, in lower case, that people give to the arrays of a split.
IMAGES = ("x_{}", "{}_x", "{}_images", "images_{}", "{}_data")
LABELS = ("y_{}", "{}_y", "{}_labels", "labels_{}", "{}_targets")
ALL_IMAGES = ("x", "images", "data")  # train and test in one
ALL_LABELS = ("y", "labels", "targets", "target")
CLASS_NAMES = ("class_names", "classes", "label_names")


class Arrays:
    """The arrays of an archive by name, opened when they are asked for."""

    def __init__(self, archive: zipfile.ZipFile, source: Path) -> None:
        self._archive, self._source = archive, source
        self._infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
        self._n_bytes = 0

    def find(self, names: Sequence[str]) -> NpyArray | None:
        """Return the array of one of these names, in any case; None if there is none.

        Raises
        ------
        ValueError — if there are several, or what was opened so far is too much.
        """
        found = [
            info
            for info in self._infos
            if info.filename.removesuffix(".npy").lower() in names
        ]
        if len(found) > 1:
            got = ", ".join(info.filename.removesuffix(".npy") for info in found)
            raise ValueError(
                f"`source` must hold one array for one thing; got {got} at "
                f"{self._source}. Leave one of them out."
            )
        if not found:
            return None
        self._n_bytes += found[0].file_size
        refuse_bomb(self._n_bytes, str(self._source))
        return NpyArray(self._archive, found[0], self._source)

    def pair(self, split: str) -> tuple[NpyArray, NpyArray] | None:
        """Return images and labels of a split; None if it has neither."""
        images = self.find([name.format(split) for name in IMAGES])
        labels = self.find([name.format(split) for name in LABELS])
        if split == "train" and images is None and labels is None:
            images, labels = self.find(ALL_IMAGES), self.find(ALL_LABELS)
        if images is not None and labels is not None:
            return images, labels
        if split != "train" and images is None and labels is None:
            return None
        got = sorted(info.filename.removesuffix(".npy") for info in self._infos)
        raise ValueError(
            "`source` must hold arrays x_train, y_train, x_test, y_test, or x and y, "
            f"and may hold x_val, y_val; got {', '.join(got) or 'none'} at "
            f"{self._source}. Name them so when saving."
        )
