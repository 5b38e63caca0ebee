"""Stores that an older reader of images made are named, and what replaces them too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.own_data import same_data
from pipeline.replacing import former_contents, older_reader
from pipeline.store import ingest, open_store

ORIENTATION = 0x112


@pytest.fixture
def photographs(tmp_path, rng):
    """Return a folder of two classes whose camera was held upside down."""
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    for i in range(14):
        path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
    return tmp_path / "pets"


@pytest.fixture
def of_an_older_reader(photographs, monkeypatch):
    """Return a store that ignores the orientation, as it was made once."""
    path = photographs.parent / "pets.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipeline.sources.pictures.ImageOps.exif_transpose", lambda image: image
        )
        ingest("image-folder", source=photographs, store=path)
    meta = json.loads((path / "zarr.json").read_text())
    for new in ("reader", "former", "origin", "notes", "files", "store_sha256"):
        del meta["attributes"][new]
    (path / "zarr.json").write_text(json.dumps(meta))
    return path


def test_older_reader__is_named(of_an_older_reader, store):
    assert "was made by an older version" in older_reader(of_an_older_reader)
    assert older_reader(store) is None  # of an npz


def test_ingest__what_replaces_it_knows_it(of_an_older_reader, photographs):
    old = open_store(of_an_older_reader)
    turned = old.images("train")[:, :, ::-1, ::-1]
    info = ingest("image-folder", source=photographs, store=of_an_older_reader)
    new = open_store(info.path)
    assert info.status == "replaced"
    np.testing.assert_array_equal(new.images("train"), turned)
    assert older_reader(info.path) is None
    assert former_contents(info.path) == [old.content_sha256]
    with pytest.raises(ValueError, match="which a newer version read from the same"):
        same_data("a-run", old.content_sha256, [info.path], "pets")
    again = ingest("image-folder", source=photographs, store=info.path, limit_train=10)
    assert former_contents(again.path) == [old.content_sha256]


def test_ingest__another_source_has_no_former_contents(of_an_older_reader, source):
    info = ingest("npz", source=source, store=of_an_older_reader, replace=True)
    assert former_contents(info.path) == []


def test_ingest__images_that_stay_the_same_keep_their_store_unless_asked(
    of_an_older_reader, photographs
):
    for path in photographs.rglob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        Image.fromarray(pixels).save(path)
    before = open_store(of_an_older_reader).content_sha256
    kept = ingest("image-folder", source=photographs, store=of_an_older_reader)
    assert (kept.status, kept.content_sha256) == ("identical", before)
    new = ingest(
        "image-folder", source=photographs, store=of_an_older_reader, replace=True
    )
    assert (new.status, new.content_sha256) == ("replaced", before)
    assert older_reader(new.path) is None


def test_train__says_that_an_older_reader_made_its_data(
    of_an_older_reader, tiny, tmp_path
):
    from pipeline.train import train

    config = tiny(budget={"steps": 1})
    ds = train(config, results=tmp_path / "results", store=of_an_older_reader)
    (warning,) = ds.attrs["warnings"]
    assert "was made by an older version, which took photographs" in warning
