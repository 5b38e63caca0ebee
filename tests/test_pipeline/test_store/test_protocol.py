"""A store appears whole or not at all, and replaces only a data store."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline import atomic, store_writer
from pipeline.sources.raw import RawDataset, RawSplit
from pipeline.store import (
    ingest,
    open_store,
)


def test_ingest__again_says_that_the_store_is_identical(leftovers, store, source):
    before = store.stat().st_ino
    info = ingest("npz", source=source, store=store)
    assert info.status == "identical"
    assert store.stat().st_ino == before
    assert not leftovers(store.parent)


@pytest.mark.parametrize("exchange", [True, False])
def test_ingest__replaces_a_store_of_other_content(
    leftovers, store, source, monkeypatch, exchange
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


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(
    "name",
    ["run.zarr/zarr.json", "notes.txt", "train_image/run.csv", "test_label/x/c.0"],
)
def test_ingest__deletes_nothing_that_it_did_not_write(
    files, store, source, name, broken
):
    (store / name).parent.mkdir(exist_ok=True)
    (store / name).write_text("days of work")
    if broken:
        (store / "zarr.json").write_text("{")
    before = files(store)
    with pytest.raises(ValueError, match=r"nothing but the data store .* Move it"):
        ingest("npz", source=source, store=store, limit_train=100, replace=True)
    assert files(store) == before


def test_ingest__does_not_mind_what_systems_put_into_folders(store, source):
    for name in (".DS_Store", "train_image/Thumbs.db"):
        (store / name).write_bytes(b"a view")
    ingest("npz", source=source, store=store, limit_train=100, replace=True)
    assert open_store(store).n_train + open_store(store).n_val == 100


def test_ingest__deletes_nothing_that_came_while_it_worked(files, store, source):
    def progress(stage, done, total):
        (store / "results").mkdir(exist_ok=True)
        (store / "results" / "run").write_text("days of work")

    with pytest.raises(ValueError, match=r"nothing but the data store"):
        ingest("npz", source=source, store=store, limit_train=100, progress=progress)
    assert open_store(store).n_train == 2250
    assert "results/run" in files(store)


def test_ingest__refuses_a_place_inside_a_store(store, source):
    with pytest.raises(ValueError, match="must not lie inside a Zarr store"):
        ingest("npz", source=source, store=store / "more.zarr")


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
    files, leftovers, store, source, monkeypatch, error, seen
):
    before = files(store)
    monkeypatch.setattr(
        "pipeline.store.open_source",
        lambda *_, **__: contextlib.nullcontext(raw_that(failure(error))),
    )
    with pytest.raises(seen):
        ingest("npz", source=source, store=store, replace=True)
    assert files(store) == before
    assert not leftovers(store.parent)


def test_ingest__a_full_disk_is_a_clear_error(files, leftovers, python, store, source):
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
            origin=None,
            former=[],
            limits=(None, None),
            val_fraction=0.1,
            progress=None,
        )


def test_ingest__killed_half_way_leaves_the_old_store_and_the_next_clears_up(
    files, leftovers, root, store, source
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
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True
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


def test_publish__readers_find_a_whole_store_at_every_moment(root, tmp_path, source):
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
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as process:
        n_seen = 0
        while process.poll() is None:
            assert (path / "zarr.json").is_file()
            n_seen += 1
            time.sleep(0.0005)
    assert process.returncode == 0
    assert n_seen > 10
    open_store(path)
