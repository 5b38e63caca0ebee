"""A small store, and what the tests of stores share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import (
    ingest,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def source(tmp_path, rng):
    """Return an .npz of 2,500 + 300 grey images, so that there are several chunks."""
    path = tmp_path / "small.npz"
    images = rng.integers(0, 256, (2800, 6, 5), dtype=np.uint8)
    images[1000:2000] = 0  # a chunk of zeros must be written too
    labels = rng.integers(0, 4, 2800)
    labels[:4] = range(4)
    np.savez(
        path,
        x_train=images[:2500],
        y_train=labels[:2500],
        x_test=images[2500:],
        y_test=labels[2500:],
    )
    return path


@pytest.fixture
def store(tmp_path, source):
    return ingest("npz", source=source, store=tmp_path / "small.zarr").path


def _files(path):
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


def _leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def _python(code, *, check=True, **env):
    """Run code in a fresh interpreter in the repository's root."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=check,
        timeout=120,
    )


@pytest.fixture
def files():
    return _files


@pytest.fixture
def leftovers():
    return _leftovers


@pytest.fixture
def python():
    return _python


@pytest.fixture
def root():
    """Return the repository's root."""
    return ROOT
