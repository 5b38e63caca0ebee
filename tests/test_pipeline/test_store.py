"""The store protocol: whole and verified, or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline import atomic, data_store, store_writer
from pipeline.sources.raw import RawDataset, RawSplit
from pipeline.store import (
    data_folder,
    ensure_store,
    ingest,
    open_store,
    resolve_store,
)

ROOT = Path(__file__).parents[2]
CODECS = ["bytes", "zstd", "crc32c"]


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


def files(path):
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def python(code, *, check=True, **env):
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


# ---------------------------------------------------------------- what is written


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
    images = rng.standard_normal((24, 3, 4, 4)).astype(np.float32)
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


def test_store__every_variable_has_checksums_and_every_chunk_is_written(store):
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
def test_ingest__refuses_numbers_that_leave_nothing(tmp_path, source, arguments):
    with pytest.raises(ValueError, match="must"):
        ingest("npz", source=source, store=tmp_path / "a.zarr", **arguments)
    assert not (tmp_path / "a.zarr").exists()
    assert not leftovers(tmp_path)


def test_ingest__the_same_input_gives_the_same_bytes(tmp_path, source):
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


# ---------------------------------------------------------------- what is refused


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
    with pytest.raises(ValueError, match=r"missing or cut chunk train_image/c.1.0.0.0"):
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
    with pytest.raises(ValueError, match="train_image with hash"):
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


# ---------------------------------------------------------------- replacing, failing


def test_ingest__again_says_that_the_store_is_identical(store, source):
    before = store.stat().st_ino
    info = ingest("npz", source=source, store=store)
    assert info.status == "identical"
    assert store.stat().st_ino == before
    assert not leftovers(store.parent)


@pytest.mark.parametrize("exchange", [True, False])
def test_ingest__replaces_a_store_of_other_content(
    store, source, monkeypatch, exchange
):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    info = ingest("npz", source=source, store=store, limit_train=100)
    assert info.status == "replaced"
    assert open_store(store).n_train == 90
    assert not leftovers(store.parent)


def test_ingest__repairs_a_damaged_store(store, source):
    (store / "train_image" / "c.1.0.0.0").unlink()
    assert ingest("npz", source=source, store=store).status == "replaced"
    (store / "zarr.json").write_text("{")
    assert ingest("npz", source=source, store=store).status == "replaced"
    open_store(store)


def test_ingest__never_replaces_what_is_not_a_data_store(tmp_path, source):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="free or a data store"):
        ingest("npz", source=source, store=tmp_path / "thesis")
    with pytest.raises(ValueError, match="free or a data store"):
        ingest("npz", source=source, store=source)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def raw_that(action):
    """Return a data set whose second piece of training data calls ``action``."""

    def batches(rows, limit):
        yield np.zeros((5, 1, 2, 2), np.uint8), np.zeros(5, np.int64)
        action()
        yield np.zeros((5, 1, 2, 2), np.uint8), np.zeros(5, np.int64)

    split = RawSplit(10, batches)
    return RawDataset(
        split, split, (1, 2, 2), np.dtype(np.uint8), ("0",), "a test", verified=False
    )


def failure(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(28, "No space left on device"), RuntimeError),
        (OSError(5, "Input/output error"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("`source` must be good"), ValueError),
    ],
)
def test_ingest__any_failure_leaves_the_old_store_untouched(
    store, source, monkeypatch, error, seen
):
    before = files(store)
    monkeypatch.setattr(
        "pipeline.store.open_source",
        lambda *_, **__: contextlib.nullcontext(raw_that(failure(error))),
    )
    with pytest.raises(seen):
        ingest("npz", source=source, store=store)
    assert files(store) == before
    assert not leftovers(store.parent)


def test_ingest__a_full_disk_is_a_clear_error(store, source):
    before = files(store)
    code = f"""
import resource, signal
from pipeline.store import ingest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    ingest("npz", source={str(source)!r}, store={str(store)!r}, limit_train=2000)
except RuntimeError as err:
    print(err)
"""
    assert "must have room on its disk" in python(code).stdout
    assert files(store) == before
    assert not leftovers(store.parent)


def test_ingest__what_does_not_read_back_is_refused(tmp_path, source, monkeypatch):
    monkeypatch.setattr(store_writer, "hash_array", lambda array, on_rows: "0" * 64)
    with pytest.raises(RuntimeError, match="read back as written"):
        ingest("npz", source=source, store=tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_ingest__fewer_samples_than_announced_are_refused(tmp_path, monkeypatch):
    raw = raw_that(lambda: None)
    raw = dataclasses.replace(raw, train=RawSplit(11, raw.train.batches))
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="must hold 11 samples"):
        store_writer.write_store(
            tmp_path / "a",
            raw,
            name="a",
            limits=(None, None),
            val_fraction=0.1,
            progress=None,
        )


def test_ingest__killed_half_way_leaves_the_old_store_and_the_next_clears_up(
    store, source
):
    before = files(store)
    code = f"""
import time
from pipeline.store import ingest
def progress(stage, done, total):
    if stage == "check":
        print("half way", flush=True)
        time.sleep(60)
ingest("npz", source={str(source)!r}, store={str(store)!r}, limit_train=2000,
       progress=progress)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.send_signal(signal.SIGKILL)
    assert files(store) == before
    partial = leftovers(store.parent)
    assert len(partial) == 1
    with pytest.raises(ValueError, match="no completion marker"):
        open_store(store.parent / partial[0])
    info = ingest("npz", source=source, store=store, limit_train=2000)
    assert info.status == "replaced"
    assert not leftovers(store.parent)


def test_leftovers__of_living_processes_and_other_machines_are_kept(tmp_path, source):
    host = socket.gethostname()
    living = tmp_path / f".a.zarr.{host}-{os.getppid()}-0123abcd.partial"
    elsewhere = tmp_path / ".a.zarr.other-host-1-0123abcd.partial"
    for folder in (living, elsewhere):
        folder.mkdir()
    ingest("npz", source=source, store=tmp_path / "a.zarr")
    assert living.is_dir()
    assert elsewhere.is_dir()


def test_leftovers__a_store_moved_aside_by_a_dead_process_comes_back(store, source):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    old = store.with_name(
        f".{store.name}.{socket.gethostname()}-{process.pid}-0123abcd.old"
    )
    store.rename(old)
    atomic.remove_leftovers(store)
    open_store(store)


def test_publish__readers_find_a_whole_store_at_every_moment(tmp_path, source):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not atomic._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("needs a file system that exchanges two directories in one step")
    path = tmp_path / "a.zarr"
    ingest("npz", source=source, store=path, limit_train=100, limit_test=10)
    code = f"""
from pipeline.store import ingest
for i in range(6):
    ingest("npz", source={str(source)!r}, store={str(path)!r},
           limit_train=100 + i % 2, limit_test=10)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        n_seen = 0
        while process.poll() is None:
            assert (path / "zarr.json").is_file()
            n_seen += 1
            time.sleep(0.0005)
    assert process.returncode == 0
    assert n_seen > 10
    open_store(path)


# ---------------------------------------------------------------- names, real sets


def test_resolve_store__a_name_is_a_store_in_the_data_folder(tmp_path, monkeypatch):
    assert resolve_store("mnist", tmp_path) == tmp_path / "data" / "mnist.zarr"
    assert resolve_store("some/mnist", tmp_path) == Path("some/mnist")
    assert resolve_store("mnist.zarr", tmp_path) == Path("mnist.zarr")
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path / "home"))
    assert resolve_store("mnist") == tmp_path / "home" / "data" / "mnist.zarr"
    monkeypatch.delenv("NDCAO_HOME")
    assert data_folder() == Path("data")


def test_ingest__image_folder_and_npz_are_named_after_their_source(
    tmp_path, source, monkeypatch
):
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    info = ingest("npz", source=source)
    assert info.path == tmp_path / "data" / "small.zarr"
    assert open_store(info.path).name == "small"


def test_ensure_store__ingests_digits_on_first_use_and_nothing_else(tmp_path):
    path = ensure_store("digits", tmp_path)
    assert path == tmp_path / "data" / "digits.zarr"
    before = path.stat().st_ino
    assert ensure_store("digits", tmp_path).stat().st_ino == before
    opened = open_store(path)
    assert (opened.name, opened.n_classes, opened.verified) == ("digits", 10, True)
    with pytest.raises(FileNotFoundError, match=r"ndcao ingest mnist"):
        ensure_store("mnist", tmp_path)


def test_ingest__imports_no_heavy_package(tmp_path):
    code = f"""
import sys
from pipeline.store import ingest, open_store
open_store(ingest("digits", store={str(tmp_path / "d.zarr")!r}).path).load("train")
heavy = {{"torch", "dask", "distributed", "pandas", "xarray", "sklearn", "prefect"}}
print(sorted(heavy & set(sys.modules)))
"""
    assert python(code).stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)],
)
def test_ingest__the_real_sets_have_their_known_moments(
    tmp_path, shared_datasets, name, mean, std
):
    info = ingest(
        name, source=shared_datasets / name, store=tmp_path / "s.zarr", val_fraction=0
    )
    assert info.verified
    assert (info.n_train, info.n_test, info.n_classes) == (60_000, 10_000, 10)
    opened = open_store(info.path)
    assert opened.mean == pytest.approx([mean], abs=5e-5)
    assert opened.std == pytest.approx([std], abs=5e-5)


@pytest.mark.slow
def test_ingest__the_shared_image_zip_is_balanced_in_every_split(
    tmp_path, shared_datasets
):
    archive = shared_datasets / "cifar10" / "cifar-10-jpeg.zip"
    info = ingest("image-folder", source=archive, store=tmp_path / "s.zarr")
    opened = open_store(info.path)
    for split, n in (("train", 1080), ("val", 120), ("test", 240)):
        assert np.bincount(opened.labels(split)).tolist() == [n] * 10
    assert opened.class_names[:2] == ("airplane", "automobile")
    assert not opened.verified
    shutil.rmtree(info.path)
