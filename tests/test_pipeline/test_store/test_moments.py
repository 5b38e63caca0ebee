"""Moments come from exact sums, so that equal data have equal hashes everywhere."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from pipeline.data_store import content_hash
from pipeline.moments import Moments
from pipeline.store import ingest, open_store

# Of digits, of 60 images of uint8 and of the same as float32: they must never change.
HASHES = [
    "8707e68b9b2fd42380dccfdff090471bb0f259768f65d165c3ed3d7a67605709",
    "782cc2acacbc53705eb082c3555f602cfafb085a9d766ca3ff5499ae7e5fbca3",
    "d38c2548ab68b5b51b335b0185cc6a859c5af85c2b858503b296fda64476fadd",
]
INGEST = """
from pathlib import Path
from pipeline.store import ingest
folder = Path({folder!r})
for name, stem in (("digits", "d"), ("npz", "u"), ("npz", "f")):
    source = folder / f"{{stem}}.npz" if name == "npz" else None
    print(ingest(name, source=source, store=folder / f"{{stem}}.zarr").content_sha256)
"""


def brute_force(images, scale):
    """Return the mean and the variance of each channel as fractions."""
    found = []
    for channel in range(images.shape[1]):
        values = [Fraction(float(x)) / scale for x in images[:, channel].ravel()]
        mean = sum(values) / len(values)
        variance = sum((x - mean) ** 2 for x in values) / len(values)
        found.append((mean, variance))
    return found


def any_floats(rng):
    """Return float32 of all magnitudes, the least and the largest among them."""
    exponents = rng.integers(-149, 127, (40, 2, 3, 2))
    values = np.ldexp(rng.integers(-(2**24), 2**24, exponents.shape), exponents - 24)
    values[0, 0, 0] = (-(2.0**-149), np.finfo(np.float32).max)
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_moments__are_the_exact_ones_rounded(rng, kind):
    if kind == "uint8":
        images, scale = rng.integers(0, 256, (40, 2, 3, 2), dtype=np.uint8), 255
    else:
        images, scale = any_floats(rng), 1
    moments = Moments(2, scale)
    moments.add(images)
    exact = brute_force(images, scale)
    assert moments.mean == [float(mean) for mean, _ in exact]
    assert moments.std == [math.sqrt(variance) for _, variance in exact]


def test_moments__do_not_depend_on_how_the_images_are_cut_and_ordered(rng):
    images = any_floats(rng)
    whole, cut = Moments(2, 1), Moments(2, 1)
    whole.add(images)
    for piece in reversed(np.array_split(images, 7)):
        cut.add(piece)
    assert (cut.mean, cut.std) == (whole.mean, whole.std)


def paths():
    """Return environments that make numpy and its BLAS take other code paths."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    optional = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    return [
        {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"},
        {
            "OPENBLAS_CORETYPE": "Prescott",
            "NPY_DISABLE_CPU_FEATURES": " ".join(optional),
        },
    ]


@pytest.mark.parametrize("environment", paths(), ids=["one", "four", "plain"])
def test_ingest__the_hash_is_the_same_on_every_machine(python, tmp_path, environment):
    levels = np.random.default_rng(5).integers(0, 256, (60, 5, 4, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "u.npz", x=levels, y=labels)
    np.savez(tmp_path / "f.npz", x=levels.astype(np.float32) / 7 - 3, y=labels)
    code = INGEST.format(folder=str(tmp_path))
    assert python(code, **environment).stdout.split() == HASHES


def test_ingest__a_store_whose_moments_an_older_version_rounded_keeps_its_hash(
    store, source
):
    meta = json.loads((store / "zarr.json").read_text())
    attributes = meta["attributes"]
    del attributes["files"], attributes["store_sha256"]  # it had no seal
    attributes["std"] = [math.nextafter(attributes["std"][0], 1)]
    attributes["content_sha256"] = content_hash(attributes)
    (store / "zarr.json").write_text(json.dumps(meta))
    info = ingest("npz", source=source, store=store)
    assert info.status == "identical"
    assert info.content_sha256 == attributes["content_sha256"]
    assert open_store(store).content_sha256 == attributes["content_sha256"]
    again = ingest("npz", source=source, store=store, replace=True)
    assert again.status == "replaced"
    assert again.content_sha256 != attributes["content_sha256"]
