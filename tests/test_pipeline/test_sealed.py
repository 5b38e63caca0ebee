"""Nothing in a store is believed that its seal does not cover."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.asynchrony import read_activity
from pipeline.compare import combine_runs
from pipeline.run_store import open_run, write_run
from pipeline.run_tree import run_tree
from pipeline.runs import list_runs
from pipeline.sealed import Damaged, SealedStore, read_root

SEEN = "seen_version"
CHUNK = Path("end_s", "c.0")


@pytest.fixture(scope="module")
def written(tmp_path_factory, synthetic_run) -> tuple[Path, Path]:
    """Return the stores of two runs whose ``end_s`` has chunks of the same size."""
    folder = tmp_path_factory.mktemp("stores")
    paths = []
    for seed in (0, 1):
        ds = synthetic_run(seed=seed, n_evals=3)
        noise = np.random.default_rng(seed).random(ds.sizes["update"])
        ds["end_s"] = ds["end_s"].copy(data=noise)  # does not compress
        paths.append(write_run(ds, folder / f"{seed}.zarr"))
    assert len({(path / CHUNK).stat().st_size for path in paths}) == 1
    return paths[0], paths[1]


@pytest.fixture
def run(written, tmp_path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "results" / "e" / "run.zarr"))


def combined(path: Path) -> None:
    combine_runs([path]).compute(scheduler="threads")


def tree(path: Path) -> None:
    for node in run_tree(combine_runs([path])).children.values():
        node.to_dataset().compute(scheduler="threads")


READERS = [open_run, combined, tree, read_activity]
by_reader = pytest.mark.parametrize("read", READERS)


def edit(file: Path, change) -> None:
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


def test_list_runs__a_root_of_another_run_is_damage(run, written) -> None:
    shutil.copy(written[1] / "zarr.json", run)
    (info,) = list_runs(run.parent.parent)
    assert info.status == "damaged"


def test_list_runs__a_root_of_another_run_of_equal_times_is_damage(
    tmp_path, synthetic_run
) -> None:
    times = synthetic_run(seed=0)["wall_time_s"]  # as on a virtual clock
    for seed in (0, 1):
        ds = synthetic_run(seed=seed).assign(wall_time_s=times)
        write_run(ds, tmp_path / "e" / f"{seed}.zarr")
    shutil.copy(tmp_path / "e" / "1.zarr" / "zarr.json", tmp_path / "e" / "0.zarr")
    assert [info.status for info in list_runs(tmp_path)] == ["damaged", "complete"]


@by_reader
def test_readers__refuse_another_runs_chunk(read, run, written) -> None:
    (run / CHUNK).write_bytes((written[1] / CHUNK).read_bytes())
    with pytest.raises(ValueError, match=rf"^`.*run.zarr .*damaged {CHUNK} \(another"):
        read(run)


def test_combine__refuses_what_was_replaced_after_it_was_opened(run, written) -> None:
    ds = combine_runs([run])
    shutil.rmtree(run)
    shutil.copytree(written[1], run)  # whole in itself
    with pytest.raises(ValueError, match=r"run.zarr with damaged test_accuracy"):
        ds["test_accuracy"].compute(scheduler="threads")


@by_reader
@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta["attributes"].update(test_accuracy=1.0),
        lambda meta: meta["attributes"].update(worker_names=["x", "y"]),
        lambda meta: meta["attributes"]["files"].popitem(),
        lambda meta: meta["attributes"]["chunks"].popitem(),
        lambda meta: meta["attributes"].pop("files"),
        lambda meta: meta["attributes"].pop("store_sha256"),
        lambda meta: meta.update(node_type="array"),
        lambda meta: meta.update(consolidated_metadata={"metadata": {}}),
        lambda meta: meta.update(more=1),
    ],
)
def test_readers__refuse_a_changed_root(read, change, run) -> None:
    edit(run / "zarr.json", change)
    with pytest.raises(ValueError, match=r"^`.*run.zarr .*zarr.json"):
        read(run)
    ((info),) = list_runs(run.parent.parent)
    assert info.status == "damaged"


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta["attributes"].update(units="km"),
        lambda meta: meta["attributes"].update(long_name="x"),
        lambda meta: meta.update(dimension_names=["score"]),
        lambda meta: meta.update(fill_value=7),
    ],
)
def test_readers__refuse_changed_metadata_of_an_array(change, run, capsys) -> None:
    edit(run / SEEN / "zarr.json", change)
    for read in READERS:
        with pytest.raises(ValueError, match=rf"^`.*damaged {SEEN}/zarr.json"):
            read(run)
    assert not capsys.readouterr().err  # no traceback of a lost task either


def test_readers__believe_no_file_that_is_not_listed(run) -> None:
    whole = open_run(run)
    shutil.copy(run / SEEN / "c.0", run / SEEN / "c.1")
    shutil.copytree(run / SEEN, run / "more")
    (run / "note.txt").write_text("mine")
    assert open_run(run).identical(whole)
    combined(run)


def test_sealed_store__refuses_chunks_beyond_those_listed(run) -> None:
    store = SealedStore(run, read_root(run))
    with pytest.raises(Damaged, match="more chunks than are listed"):
        store.read(f"{SEEN}/c.7")
    assert store.read("more/zarr.json") is None


def reseal(run: Path, change) -> None:
    """Change a root as somebody would who knows how it is sealed."""

    def both(meta) -> None:
        attrs = meta["attributes"]
        change(attrs)
        del attrs["store_sha256"]
        text = json.dumps(attrs, sort_keys=True).encode()
        attrs["store_sha256"] = hashlib.sha256(text).hexdigest()

    edit(run / "zarr.json", both)


@pytest.mark.parametrize("name", ["../../x", "/etc/c.0", "a/../c.0", "a/b/c.0", "x"])
def test_readers__refuse_a_list_of_files_that_leads_elsewhere(name, run) -> None:
    reseal(run, lambda attrs: attrs["files"].update({name: "0"}))
    for read in READERS:
        with pytest.raises(ValueError, match=r"among the files that zarr.json lists"):
            read(run)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**15]},
        {"shape": [10**6]},
        {"data_type": "string"},
        {"codecs": [{"name": "bytes"}, {"name": "blosc"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**12]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}}},
        {"chunk_grid": None},
    ],
)
def test_readers__refuse_arrays_that_are_none_of_ours_before_reading(
    change, run
) -> None:
    file = run / SEEN / "zarr.json"
    edit(file, lambda meta: meta.update(change))
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    reseal(run, lambda attrs: attrs["files"].update({f"{SEEN}/zarr.json": content}))
    for read in READERS:
        with pytest.raises(ValueError, match=rf"^`.*damaged {SEEN}/zarr.json"):
            read(run)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"\xff\xfe",
        b"9" * 5_000,
        b'{"attributes":1}',
    ],
)
def test_readers__name_a_root_that_is_no_zarr_group(content, run) -> None:
    (run / "zarr.json").write_bytes(content)
    for read in READERS:
        with pytest.raises(ValueError, match=r"^`.*run.zarr .*a zarr.json"):
            read(run)


def test_readers__refuse_a_huge_root_without_reading_it(run) -> None:
    with (run / "zarr.json").open("r+b") as file:
        file.truncate(2**31)  # sparse: takes no room
    for read in READERS:
        with pytest.raises(ValueError, match="2,147,483,648 bytes"):
            read(run)


@pytest.mark.parametrize("name", ["zarr.json", f"{SEEN}/zarr.json", f"{SEEN}/c.0"])
def test_readers__do_not_wait_for_what_is_no_file(name, run) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    for read in READERS:
        with pytest.raises(ValueError, match=r"^`.*run.zarr"):
            read(run)


# -- stores of before there was a seal -------------------------------------------------


@pytest.fixture
def old(run) -> Path:
    """Return a store as of before: sizes of chunks, hashes of values."""

    def unseal(meta) -> None:
        for name in ("files", "store_sha256"):
            del meta["attributes"][name]

    edit(run / "zarr.json", unseal)
    return run


def test_an_old_store__is_read_as_before(old, written) -> None:
    ds, new = open_run(old), open_run(written[0])
    assert ds.drop_attrs(deep=False).identical(new.drop_attrs(deep=False))
    assert ds.attrs["content_sha256"] == new.attrs["content_sha256"]
    for read in READERS:
        read(old)
    (info,) = list_runs(old.parent.parent)
    assert info.status == "complete"


@by_reader
def test_an_old_store__another_runs_chunk_is_refused(read, old, written) -> None:
    (old / CHUNK).write_bytes((written[1] / CHUNK).read_bytes())
    with pytest.raises(ValueError, match=r"^`.*damaged end_s \(another hash\)"):
        read(old)
