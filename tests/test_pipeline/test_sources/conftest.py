"""What the tests of all readers share."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

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


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _as_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def _as_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _as_tar(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def read():
    """Return the function that reads a whole source in pieces."""
    return _read


@pytest.fixture
def png():
    """Return the function that packs an array of pixels as PNG."""
    return _png


@pytest.fixture
def as_folder():
    """Return the function that writes files, name → content, into a folder."""
    return _as_folder


@pytest.fixture
def as_zip():
    """Return the function that packs files, name → content, as a zip."""
    return _as_zip


@pytest.fixture
def as_tar():
    """Return the function that packs files as a tar, with ``.gz`` as gzip."""
    return _as_tar


@pytest.fixture
def pets(rng):
    """Return name → PNG of two classes with seven images of 6 × 5 pixels each."""
    return {
        f"{name}/{i}.png": _png(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        for name in ("cat", "dog")
        for i in range(7)
    }
