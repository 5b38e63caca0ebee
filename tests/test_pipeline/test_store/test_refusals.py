"""A store that is not what was ingested is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.store import (
    ingest,
    open_store,
)


def test_open_store__a_deleted_chunk_is_an_error_that_names_store_and_remedy(store):
    (store / "train_image" / "c.1.0.0.0").unlink()
    for verify in (True, False):
        with pytest.raises(
            ValueError, match=r"small.zarr. Ingest it again: ndcao ingest"
        ):
            open_store(store, verify=verify)


def test_load__a_chunk_deleted_after_opening_is_an_error(store):
    opened = open_store(store)
    (store / "train_image" / "c.1.0.0.0").unlink()
    with pytest.raises(ValueError, match=r"damaged train_image/c.1.0.0.0"):
        opened.load("train")
    opened.load("test")


@pytest.mark.parametrize(
    "name", ["train_image/c.0.0.0.0", "train_label/c.2", "test_label/c.0"]
)
def test_open_store__a_flipped_bit_is_an_error(store, name):
    content = bytearray((store / name).read_bytes())
    content[len(content) // 2] ^= 1
    (store / name).write_bytes(content)
    with pytest.raises(ValueError, match="complete and unchanged"):
        open_store(store)
    with pytest.raises(ValueError, match="complete and unchanged"):
        open_store(store, verify=False).load(name[: name.index("_")])


def test_open_store__two_chunks_exchanged_are_an_error(tmp_path, rng):
    # Both keep their checksums, and noise does not compress: their sizes agree too.
    images = rng.integers(0, 256, (2400, 2, 2), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(2400) % 2)
    store = ingest("npz", source=tmp_path / "a.npz", store=tmp_path / "a.zarr").path
    a, b = (store / "train_image" / f"c.{i}.0.0.0" for i in (0, 1))
    a_content, b_content = a.read_bytes(), b.read_bytes()
    assert len(a_content) == len(b_content)
    a.write_bytes(b_content)
    b.write_bytes(a_content)
    with pytest.raises(ValueError, match=r"train_image/c\.[01]\.0\.0\.0 \(another"):
        open_store(store)


def change(store, **attributes):
    path = store / "zarr.json"
    meta = json.loads(path.read_text())
    meta["attributes"].update(attributes)
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "attributes",
    [
        {"n_val": 0, "n_train": 2500},
        {"mean": [0.5]},
        {"class_names": ["a", "b", "c", "d"]},
        {"content_sha256": "0" * 64},
        {"image_shape": [5, 6]},
        {"chunks": None},
        {"variables": {}},
    ],
)
def test_open_store__changed_metadata_are_an_error(store, attributes):
    change(store, **attributes)
    with pytest.raises(ValueError, match="complete and unchanged"):
        open_store(store)


def test_open_store__without_its_marker_is_an_error(store):
    change(store, complete=False)
    with pytest.raises(ValueError, match="no completion marker"):
        open_store(store)


def test_open_store__something_else_is_an_error(tmp_path, store):
    with pytest.raises(FileNotFoundError, match=r"nowhere.zarr. Ingest it first"):
        open_store(tmp_path / "nowhere.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="written by `ndcao ingest`"):
        open_store(tmp_path / "folder")
    (store / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="written by `ndcao ingest`"):
        open_store(store)


@pytest.mark.parametrize("split", ["training", ""])
def test_load__refuses_an_unknown_split(store, split):
    with pytest.raises(ValueError, match="train, val or test"):
        open_store(store).load(split)


def test_images__refuse_samples_that_are_not_there(store):
    with pytest.raises(ValueError, match=r"in 0…300 of test; got 0…301"):
        open_store(store).images("test", 0, 301)


@pytest.mark.parametrize(
    "attributes",
    [{"verified": True}, {"name": "mnist"}, {"source": "x"}, {"more": 1}],
)
@pytest.mark.parametrize("verify", [True, False])
def test_open_store__attributes_beside_the_content_hash_are_covered(
    store, attributes, verify
):
    change(store, **attributes)
    with pytest.raises(ValueError, match="complete and unchanged; got attributes in"):
        open_store(store, verify=verify)


@pytest.mark.parametrize("name", ["files", "store_sha256"])
def test_open_store__half_a_seal_is_refused(store, name):
    edit(store / "zarr.json", lambda meta: meta["attributes"].pop(name))
    with pytest.raises(ValueError, match="complete and unchanged"):
        open_store(store)


def test_load__changed_metadata_of_an_array_are_an_error(store):
    edit(store / "test_image" / "zarr.json", lambda meta: meta.update(fill_value=3))
    with pytest.raises(ValueError, match=r"damaged test_image/zarr.json"):
        open_store(store, verify=False).load("test")


def unsealed(store):
    """Make a store one as it was written before there was a seal."""

    def unseal(meta):
        for name in ("files", "store_sha256"):
            del meta["attributes"][name]

    edit(store / "zarr.json", unseal)
    return store


def test_open_store__a_store_of_before_there_was_a_seal_is_the_same(store):
    new = open_store(store)
    loaded = new.load("val")
    old = open_store(unsealed(store))
    assert (old.content_sha256, old.sealed) == (new.content_sha256, False)
    for values, same in zip(old.load("val"), loaded, strict=True):
        np.testing.assert_array_equal(values, same)


def test_load__values_of_an_old_store_are_those_of_its_hash(tmp_path, rng):
    images = rng.integers(0, 256, (2400, 2, 2), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(2400) % 2)
    store = ingest("npz", source=tmp_path / "a.npz", store=tmp_path / "a.zarr").path
    opened = open_store(unsealed(store))
    a, b = (store / "train_image" / f"c.{i}.0.0.0" for i in (0, 1))
    a_content, b_content = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_content)
    b.write_bytes(a_content)  # after it was opened
    with pytest.raises(ValueError, match="train_image with hash"):
        opened.load("train")


def edit(file, change):
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))
