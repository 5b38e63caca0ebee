"""What the tests of all readers share."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sources import open_source


def _read(name, source, *, unverified=True, limit=10**9, rows=7):
    """Return train images, train labels, test images, test labels and the data set."""
    with open_source(name, source, unverified=unverified) as data:
        parts = []
        for split in (data.train, data.test):
            pieces = list(split.batches(rows, limit))
            parts += [np.concatenate([piece[i] for piece in pieces]) for i in (0, 1)]
            assert len(parts[-1]) == min(split.n_samples, limit)
        return (*parts, data)


@pytest.fixture
def read():
    """Return the function that reads a whole source in pieces."""
    return _read
