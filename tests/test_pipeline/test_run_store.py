"""Run stores: whole or refused, and readable by plain xarray."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline.run_store import open_run, write_run
from pipeline.schema import check_schema


@pytest.fixture
def copy(sync_run, tmp_path) -> Path:
    ds, _ = sync_run
    return Path(shutil.copytree(ds.attrs["store"], tmp_path / "run.zarr"))


def edit(copy: Path, change) -> None:
    meta = json.loads((copy / "zarr.json").read_text())
    change(meta["attributes"])
    (copy / "zarr.json").write_text(json.dumps(meta))


def chunks(copy: Path) -> list[Path]:
    return sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "zarr.json")


def test_write_run__what_is_opened_is_what_was_written(sync_run, tmp_path) -> None:
    ds, _ = sync_run
    back = open_run(write_run(ds, tmp_path / "again.zarr"))
    xr.testing.assert_identical(back.drop_attrs(deep=False), ds.drop_attrs(deep=False))
    stored = {k: v for k, v in back.attrs.items() if k in ds.attrs}
    assert json.dumps(stored) == json.dumps(ds.attrs)
    assert back.attrs["complete"] is True
    check_schema(back)


def test_open_zarr__reads_a_run_without_a_warning(sync_run) -> None:
    ds, _ = sync_run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(ds.attrs["store"], consolidated=False)
        np.testing.assert_array_equal(plain["params"].values, ds["params"].values)
    assert plain["test_accuracy"].attrs["units"] == "1"
    assert plain.sizes == ds.sizes


@pytest.mark.parametrize("name", ["complete", "content_sha256", "chunks", "variables"])
def test_open_run__without_a_part_of_its_marker_is_refused(copy, name) -> None:
    edit(copy, lambda attrs: attrs.pop(name))
    with pytest.raises(ValueError, match="with no completion marker"):
        open_run(copy)


@pytest.mark.parametrize("name", ["store_sha256", "files"])
def test_open_run__without_a_part_of_its_seal_is_refused(copy, name) -> None:
    edit(copy, lambda attrs: attrs.pop(name))
    with pytest.raises(ValueError, match="must be complete and unchanged"):
        open_run(copy)


def test_open_run__any_deleted_chunk_is_named(copy) -> None:
    for path in chunks(copy):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ValueError, match=f"damaged {path.parent.name}"):
            open_run(copy)
        path.write_bytes(content)
    open_run(copy)


def test_open_run__a_flipped_byte_in_any_chunk_is_an_error(copy, rng) -> None:
    for path in chunks(copy):
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match="`run` must be"):
            open_run(copy)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        lambda attrs: attrs.update(test_accuracy=1.0),
        lambda attrs: attrs.update(seed=5),
        lambda attrs: attrs["variables"].pop("params"),
        lambda attrs: attrs["variables"].update(params="0"),
        lambda attrs: attrs.update(note="added"),
    ],
)
def test_open_run__a_changed_attribute_is_an_error(copy, change) -> None:
    edit(copy, change)
    with pytest.raises(ValueError, match="must be complete and unchanged"):
        open_run(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"zarr_format": 3}'])
def test_open_run__broken_metadata_is_an_error(copy, content) -> None:
    (copy / "zarr.json").write_text(content)
    with pytest.raises(ValueError, match="`run` must be"):
        open_run(copy)


def test_open_run__nothing_there_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.zarr"):
        open_run(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match=r"a zarr.json that cannot be read"):
        open_run(tmp_path / "empty.zarr")


def test_write_run__a_failure_leaves_the_older_store_and_no_rest(
    copy, sync_run, monkeypatch
) -> None:
    ds, _ = sync_run

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.run_store.seal", full)
    with pytest.raises(RuntimeError, match="must have room on its disk"):
        write_run(ds.assign_attrs(seed=99), copy)
    assert open_run(copy).attrs["seed"] == 0
    assert list(copy.parent.iterdir()) == [copy]


def test_write_run__replaces_an_older_run(copy, sync_run) -> None:
    ds, _ = sync_run
    write_run(ds.assign_attrs(seed=99), copy)
    assert open_run(copy).attrs["seed"] == 99


def test_write_run__refuses_what_breaks_the_schema(sync_run, tmp_path) -> None:
    ds, _ = sync_run
    with pytest.raises(ValueError, match="`params` must be present"):
        write_run(ds.drop_vars("params"), tmp_path / "x.zarr")
    assert not list(tmp_path.iterdir())
