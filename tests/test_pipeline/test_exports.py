from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr

from pipeline.compare import combine_runs, loaded
from pipeline.exports import check_export, evaluation_table, write_export


@pytest.fixture(scope="module")
def combined(tmp_path_factory, synthetic_run, write_run):
    folder = tmp_path_factory.mktemp("results")
    settings = {"algorithm": {"kind": "nd-cao", "window": 200}}
    return combine_runs(
        [
            write_run(synthetic_run("nd-cao", "sync", 0), folder),
            write_run(synthetic_run("nd-cao", "async", 1, n_evals=5), folder),
            write_run(synthetic_run("nd-cao", "sync", 2, config=settings), folder),
        ]
    )


def test_netcdf__opens_with_units_names_and_the_same_values(combined, tmp_path):
    (path,) = write_export(combined, tmp_path / "runs.nc")
    with xr.open_dataset(path, engine="netcdf4") as ds:
        wanted = loaded(combined)
        for name in ("test_accuracy", "wall_time_s", "final_train_loss"):
            np.testing.assert_array_equal(ds[name], wanted[name])
        for name in (*ds.data_vars, "seed", "config.algorithm.window"):
            assert ds[name].attrs["units"] == wanted[name].attrs["units"]
            assert ds[name].attrs["long_name"] == wanted[name].attrs["long_name"]
        assert ds["mode"].values.tolist() == ["sync", "async", "sync"]
        assert ds.attrs["Conventions"] == "CF-1.11"
        assert ds.attrs["config_varies"].startswith("config.algorithm.window; ")
        assert "start_s" not in ds


def test_netcdf__padding_of_integers_is_missing_and_lengths_are_kept(
    combined, tmp_path
):
    (path,) = write_export(combined, tmp_path / "runs.nc")
    with xr.open_dataset(path, engine="netcdf4") as ds:
        assert ds["n_evals"].values.tolist() == [12, 5, 12]
        assert ds["n_evals"].dtype == np.int64
        assert np.isnan(ds["n_samples"].values[1, 5:]).all()
        assert ds["n_samples"].values[1, 4] == combined["n_samples"].values[1, 4]


def test_zarr__opens_with_units_names_and_the_same_values(combined, tmp_path):
    (path,) = write_export(combined, tmp_path / "runs.zarr")
    ds = xr.open_zarr(path, consolidated=False)
    for name in ("test_accuracy", "step"):
        np.testing.assert_array_equal(ds[name], combined[name])
        assert ds[name].attrs == combined[name].attrs
    assert ds["mode"].values.tolist() == ["sync", "async", "sync"]


def test_zarr__does_not_replace_a_store(combined, tmp_path):
    run = str(combined["store"].values[0])
    with pytest.raises(FileExistsError, match="must not replace a Zarr store"):
        write_export(combined, run)
    assert combine_runs([run]).sizes["run"] == 1


def test_csv__has_a_row_an_evaluation_and_its_columns_in_a_second_file(
    combined, tmp_path
):
    path, about = write_export(combined, tmp_path / "runs.csv")
    table = pd.read_csv(path)
    assert len(table) == 12 + 5 + 12
    one = table[table["seed"] == 1]
    np.testing.assert_array_equal(one["eval"], range(5))
    np.testing.assert_allclose(
        one["test_accuracy"], combined["test_accuracy"].values[1, :5], rtol=1e-15
    )
    assert table["step"].dtype == np.int64
    assert about.name == "runs.columns.csv"
    columns = pd.read_csv(about, keep_default_na=False).set_index("column")
    assert columns.index.tolist() == table.columns.tolist()
    assert columns.loc["wall_time_s", "units"] == "s"
    assert columns.loc["bytes_moved", "units"] == "B"
    assert (columns["long_name"] != "").all()


def test_csv__is_one_plain_table_for_r_and_spreadsheets(combined, tmp_path):
    path, _ = write_export(combined, tmp_path / "runs.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[0][0] == "run_id"
    assert not any("\n" in cell for row in rows for cell in row)


def test_parquet__carries_units_and_names_in_its_schema(combined, tmp_path):
    (path,) = write_export(combined, tmp_path / "runs.parquet")
    schema = pq.read_schema(path)
    assert schema.field("wall_time_s").metadata[b"units"] == b"s"
    assert schema.field("step").metadata[b"long_name"] == b"updates per node"
    assert schema.metadata[b"Conventions"] == b"CF-1.11"
    pd.testing.assert_frame_equal(
        pd.read_parquet(path), evaluation_table(combined), check_dtype=False
    )


def test_export__is_written_over_the_older_file_as_a_whole(combined, tmp_path):
    path = tmp_path / "new" / "runs.csv"
    first = write_export(combined.isel(run=[0]), path)
    write_export(combined, path)
    assert len(pd.read_csv(path)) == 29
    assert sorted(path.parent.iterdir()) == sorted(first)


def test_export__works_where_nothing_varies(combined, tmp_path):
    one = combine_runs([str(combined["store"].values[0])])
    for name in ("runs.nc", "runs.parquet", "runs.csv", "runs.zarr"):
        assert all(path.exists() for path in write_export(one, tmp_path / name))


@pytest.mark.parametrize("name", ["runs.xlsx", "runs", "runs.nc.gz"])
def test_export__refuses_an_unknown_format(name):
    with pytest.raises(ValueError, match=r"end with \.nc, \.zarr, \.csv, \.parquet"):
        check_export(name)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv__no_text_is_a_formula_to_a_spreadsheet(
    start, tmp_path, synthetic_run, write_run
):
    text = f"{start}HYPERLINK(A1)"
    attrs = {"dataset": text, "stop_reason": text}
    run = write_run(synthetic_run(attrs=attrs), tmp_path)
    combined = combine_runs([run])
    path, _ = write_export(combined, tmp_path / "runs.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["dataset"] == "'" + text.replace("\r", "\n")
    assert rows[0]["stop_reason"] == rows[0]["dataset"]
    assert float(rows[0]["step"]) == combined["step"].values[0, 0]
    assert evaluation_table(combined)["dataset"][0] == text
    frame = pd.read_csv(path)
    assert [frame[name].dtype.kind for name in ("step", "train_loss")] == ["i", "f"]
