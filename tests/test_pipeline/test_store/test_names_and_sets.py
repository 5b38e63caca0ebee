"""Where stores are by name, and the real data sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.replacing import store_name, store_path
from pipeline.store import (
    data_folder,
    ensure_store,
    ingest,
    open_store,
    resolve_store,
)


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


@pytest.mark.parametrize(
    ("source", "folder", "name"),
    [
        ("pets.v1", True, "pets.v1"),
        ("pets.zip", True, "pets.zip"),
        ("pets.v1.zip", False, "pets.v1"),
        ("pets.v1.TAR.GZ", False, "pets.v1"),
        ("pets.tgz", False, "pets"),
        ("pets.v1", False, "pets.v1"),
    ],
)
def test_store_path__only_files_lose_their_suffix(
    tmp_path, monkeypatch, source, folder, name
):
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    path = tmp_path / source
    path.mkdir() if folder else path.touch()
    found = store_path("image-folder", path, None)
    assert found == tmp_path / "data" / f"{name}.zarr"
    assert store_name(found) == name


@pytest.mark.parametrize("name", ["digits", "MNIST", "npz"])
def test_ingest__known_names_are_reserved(tmp_path, source, monkeypatch, name):
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    source.rename(tmp_path / f"{name}.npz")
    for place in ({}, {"store": tmp_path / "elsewhere" / f"{name}.zarr"}):
        with pytest.raises(ValueError, match=rf"a name of its own.*got {name} for"):
            ingest("npz", source=tmp_path / f"{name}.npz", replace=True, **place)
    assert not (tmp_path / "data").exists()


def test_ingest__a_source_without_a_name_needs_one():
    with pytest.raises(ValueError, match=r"a name of its own.*got none for /"):
        ingest("image-folder", source="/")


def test_ingest__another_source_replaces_nothing_unless_asked(
    files, tmp_path, store, source
):
    other = tmp_path / "new" / source.name
    other.parent.mkdir()
    with np.load(source) as arrays:
        np.savez(other, **{**arrays, "x_train": arrays["x_train"][:, ::-1]})
    before = files(store)
    with pytest.raises(ValueError, match=r"same source gave before; .* add --replace"):
        ingest("npz", source=other, store=store)
    with pytest.raises(ValueError, match=r"same source gave before; .* for digits"):
        ingest("digits", store=store)
    assert files(store) == before
    info = ingest("npz", source=other, store=store, replace=True)
    assert info.status == "replaced"
    assert ingest("npz", source=other, store=store).status == "identical"


def test_ingest__the_same_source_may_have_changed(store, source):
    with np.load(source) as arrays:
        changed = {**arrays, "x_train": arrays["x_train"][:, ::-1]}
    np.savez(source, **changed)
    assert ingest("npz", source=source, store=store).status == "replaced"


def test_ingest__a_copy_is_taken_for_the_origin_when_asked(tmp_path, store, source):
    copy = tmp_path / "copy" / source.name
    copy.parent.mkdir()
    shutil.copy(source, copy)
    content = open_store(store).content_sha256
    info = ingest("npz", source=copy, store=store, replace=True)
    assert info.content_sha256 == content
    assert ingest("npz", source=copy, store=store).status == "identical"


def test_ensure_store__ingests_digits_on_first_use_and_nothing_else(tmp_path):
    path = ensure_store("digits", tmp_path)
    assert path == tmp_path / "data" / "digits.zarr"
    before = path.stat().st_ino
    assert ensure_store("digits", tmp_path).stat().st_ino == before
    opened = open_store(path)
    assert (opened.name, opened.n_classes, opened.verified) == ("digits", 10, True)
    with pytest.raises(FileNotFoundError, match=r"ndcao ingest mnist"):
        ensure_store("mnist", tmp_path)


def test_ingest__imports_no_heavy_package(python, tmp_path):
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


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "back\\slash", "x" * 150])
def test_ingest__a_name_that_no_file_should_have_is_refused(name, tmp_path) -> None:
    with pytest.raises(ValueError, match="a name that can be part of files' names"):
        ingest("digits", store=tmp_path / f"{name}.zarr")
    assert list(tmp_path.iterdir()) == []
