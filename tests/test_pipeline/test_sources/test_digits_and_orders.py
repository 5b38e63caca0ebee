"""The bundled digits, and the orders that need no random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sources import idx
from pipeline.sources.ordering import class_ranks, interleaved, spread


def test_digits__are_scikit_learns_images_spread_over_the_splits(read):
    from sklearn.datasets import load_digits

    x, y, test_x, test_y, data = read("digits", None, unverified=False)
    pixels, labels = load_digits(return_X_y=True)
    expected = np.rint(pixels * (255 / 16)).astype(np.uint8)

    def rows(images, classes):
        flat = np.column_stack([images.reshape(len(images), -1), classes])
        return sorted(map(bytes, flat.astype(np.uint8)))

    got_x, got_y = np.concatenate([x, test_x]), np.concatenate([y, test_y])
    assert rows(got_x, got_y) == rows(expected, labels)
    assert len(test_y) == 296
    assert data.verified
    shares = np.bincount(y[-150:], minlength=10)  # what val takes
    assert shares.min() >= 8


def test_digits__refuse_a_source(read, tmp_path):
    with pytest.raises(ValueError, match="without --from"):
        read("digits", tmp_path)


def test_class_ranks__count_within_each_class():
    assert class_ranks(np.array([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]
    assert class_ranks(np.array([], dtype=int)).tolist() == []


def test_orders__are_permutations(rng):
    labels = rng.integers(0, 4, 101)
    assert sorted(interleaved(labels)) == list(range(101))
    assert sorted(spread(101)) == list(range(101))


def test_idx_module__is_what_the_known_names_use():
    assert idx.IMAGES_MAGIC == 2051
    assert idx.LABELS_MAGIC == 2049
