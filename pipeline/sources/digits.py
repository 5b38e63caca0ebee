"""Handwritten digits bundled with scikit-learn (Alpaydin, Kaynak, 1998)."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.sources.known import DIGITS, DIGITS_SHA256
from pipeline.sources.ordering import held_out, spread
from pipeline.sources.raw import RawDataset, in_pieces


@contextmanager
def open_digits() -> Iterator[RawDataset]:
    """Read the 1,797 images of 8 × 8 pixels, without importing scikit-learn (148 MB).

    Grey levels 0…16 become 0…255. The file is in the order of its writers: samples are
    spread first, so that train, val and test see all of them; one in six of each class
    is for testing.

    Raises
    ------
    RuntimeError — if scikit-learn is not installed.
    ValueError — if its copy is not the known one.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "`digits` must come from scikit-learn; got an environment without it. "
            "Install it: pip install scikit-learn."
        )
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    content = gzip.decompress(path.read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    if digest != DIGITS_SHA256:
        raise ValueError(
            f"`digits` must be scikit-learn's known file (sha256 {DIGITS_SHA256}); got "
            f"{digest} at {path}. Install scikit-learn again."
        )
    table = np.loadtxt(content.decode().splitlines(), delimiter=",", dtype=np.float64)
    table = table[spread(len(table))]
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    test = held_out(labels)
    yield RawDataset(
        train=in_pieces(images[~test], labels[~test]),
        test=in_pieces(images[test], labels[test]),
        image_shape=(1, 8, 8),
        dtype=np.dtype(np.uint8),
        class_names=DIGITS,
        source="digits: scikit-learn's copy, one in six of each class for testing",
        verified=True,
    )
