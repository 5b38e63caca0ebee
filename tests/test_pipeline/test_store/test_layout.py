"""A store holds what was ingested, as other readers see it too."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import xarray as xr

from pipeline import data_store
from pipeline.store import (
    ingest,
    open_store,
)

CODECS = ["bytes", "zstd", "crc32c"]


def test_store__splits_are_the_raw_data_in_order(store, source):
    opened = open_store(store)
    with np.load(source) as raw:
        for split, rows in (("train", slice(0, 2250)), ("val", slice(2250, 2500))):
            images, labels = opened.load(split)
            np.testing.assert_array_equal(images[:, 0], raw["x_train"][rows])
            np.testing.assert_array_equal(labels, raw["y_train"][rows])
        images, labels = opened.load("test")
        np.testing.assert_array_equal(images[:, 0], raw["x_test"])
        np.testing.assert_array_equal(labels, raw["y_test"])
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert (opened.n_train, opened.n_val, opened.n_test) == (2250, 250, 300)
    assert opened.n_samples("val") == 250
    np.testing.assert_array_equal(
        opened.images("val", 10, 20), opened.load("val")[0][10:20]
    )


def test_store__mean_and_std_are_of_train_without_val(store, source):
    opened = open_store(store)
    with np.load(source) as raw:
        pixels = raw["x_train"][:2250].astype(np.float64) / 255
    assert opened.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert opened.std == pytest.approx([pixels.std()], rel=1e-12)
    assert opened.pixel_scale == 255


@pytest.mark.parametrize("value", [np.uint8(7), np.float32(0.1)])
def test_store__a_constant_channel_has_std_one(tmp_path, value):
    images = np.full((12, 3, 3), value)
    np.savez(tmp_path / "c.npz", x=images, y=np.zeros(12, int))
    info = ingest("npz", source=tmp_path / "c.npz", store=tmp_path / "c.zarr")
    assert open_store(info.path).std == (1.0,)


def test_store__floats_stay_floats_in_their_own_scale(tmp_path, rng):
    images = rng.standard_normal((24, 3, 4, 5)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=images, y=np.arange(24) % 2)
    opened = open_store(
        ingest("npz", source=tmp_path / "c.npz", store=tmp_path / "c.zarr").path
    )
    images, _ = opened.load("train")
    assert images.dtype == np.float32
    assert opened.pixel_scale == 1
    expected = images.astype(np.float64).mean(axis=(0, 2, 3))
    assert opened.mean == pytest.approx(expected, rel=1e-9)


def test_store__opens_with_plain_xarray(store):
    with xr.open_zarr(store, consolidated=False) as dataset:
        assert dataset["train_image"].dims == ("train_sample", "channel", "y", "x")
        assert dataset["train_label"].dims == ("train_sample",)
        assert dict(dataset.sizes) == {
            "train_sample": 2500,
            "test_sample": 300,
            "channel": 1,
            "y": 6,
            "x": 5,
        }
        assert dataset.attrs["complete"] is True
        images, _ = open_store(store).load("test")
        assert dataset["test_image"].dtype == np.uint8
        np.testing.assert_array_equal(dataset["test_image"].values, images)


def test_store__reads_back_identically_with_tensorstore(store):
    tensorstore = pytest.importorskip("tensorstore")
    opened = open_store(store)
    for name in data_store.VARIABLES:
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{store / name}/"},
        }
        values = tensorstore.open(spec).result().read().result()
        split, what = name.split("_")
        read = opened.images if what == "image" else opened.labels
        expected = read(split)
        if split == "train":
            expected = np.concatenate([expected, read("val")])
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)


def test_store__every_variable_has_checksums_and_every_chunk_is_written(files, store):
    n_chunks = 0
    for name in data_store.VARIABLES:
        meta = json.loads((store / name / "zarr.json").read_text())
        assert [codec["name"] for codec in meta["codecs"]] == CODECS
        chunk = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        n_chunks += -(-meta["shape"][0] // chunk)
    listed = json.loads((store / "zarr.json").read_text())["attributes"]["chunks"]
    assert len(listed) == n_chunks == 8
    assert set(listed) == {name for name in files(store) if "zarr.json" not in name}


def test_store__limits_keep_the_first_samples(tmp_path, source):
    path = tmp_path / "limited.zarr"
    info = ingest("npz", source=source, store=path, limit_train=105, limit_test=7)
    assert (info.n_train, info.n_val, info.n_test) == (94, 11, 7)
    with np.load(source) as raw:
        images = np.concatenate([open_store(path).images(s) for s in ("train", "val")])
        np.testing.assert_array_equal(images[:, 0], raw["x_train"][:105])


def test_store__val_fraction_zero_leaves_val_empty(tmp_path, source):
    info = ingest("npz", source=source, store=tmp_path / "a.zarr", val_fraction=0)
    assert (info.n_train, info.n_val) == (2500, 0)
    assert open_store(info.path).load("val")[0].shape == (0, 1, 6, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit_train": 0},
        {"limit_test": -1},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
        {"limit_train": 1, "val_fraction": 0.9},
    ],
)
def test_ingest__refuses_numbers_that_leave_nothing(
    leftovers, tmp_path, source, arguments
):
    with pytest.raises(ValueError, match="must"):
        ingest("npz", source=source, store=tmp_path / "a.zarr", **arguments)
    assert not (tmp_path / "a.zarr").exists()
    assert not leftovers(tmp_path)


def test_ingest__the_same_input_gives_the_same_bytes(files, tmp_path, source):
    a = ingest("npz", source=source, store=tmp_path / "a" / "s.zarr").path
    b = ingest("npz", source=source, store=tmp_path / "b" / "s.zarr").path
    assert files(a) == files(b)


def test_ingest__reports_progress_to_the_end(tmp_path, source):
    seen = []
    ingest(
        "npz",
        source=source,
        store=tmp_path / "a.zarr",
        progress=lambda *event: seen.append(event),
    )
    assert seen[-1] == ("check", 5600, 5600)
    assert ("write", 2800, 2800) in seen


def test_store__pickles_without_its_data(store):
    opened = open_store(store)
    again = pickle.loads(pickle.dumps(opened))
    assert again == opened
    np.testing.assert_array_equal(again.load("test")[0], opened.load("test")[0])
