from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from pipeline.compare import combine_runs, loaded, summary_table
from pipeline.run_arrays import mean_staleness
from pipeline.schema import describe


def test_combine_runs__keeps_every_run_and_its_coordinates(tmp_path, write_demo_runs):
    ds = combine_runs(write_demo_runs(tmp_path))
    assert ds.sizes["run"] == 6
    assert ds["algorithm"].values.tolist() == ["nd-cao"] * 4 + ["sgd"] * 2
    assert ds["mode"].values.tolist() == ["sync"] * 2 + ["async"] * 2 + ["sync"] * 2
    assert ds["seed"].values.tolist() == [0, 1] * 3
    assert ds["train_loss"].attrs == describe("train_loss")
    one = xr.open_zarr(ds["store"].item(3), consolidated=False)
    np.testing.assert_array_equal(ds["test_accuracy"][3], one["test_accuracy"])
    np.testing.assert_array_equal(ds["seen_version"][3], one["seen_version"])
    by_mode = ds["mean_staleness"].groupby("mode").mean()
    assert by_mode.sel(mode="async").item() == 1.0


def test_combine_runs__pads_ragged_lengths_and_keeps_them(
    tmp_path, synthetic_run, write_run
):
    short = write_run(synthetic_run(seed=0, n_evals=3), tmp_path)
    long = write_run(synthetic_run(seed=1, n_evals=5), tmp_path)
    ds = combine_runs([short, long])
    assert ds["n_evals"].values.tolist() == [3, 5]
    assert ds["n_updates"].values.tolist() == [60, 120]
    assert ds["n_scores"].values.tolist() == [20, 40]
    assert ds["step"].values[0].tolist() == [0, 10, 20, -1, -1]
    assert np.isnan(ds["train_loss"].values[0, 3:]).all()
    assert np.isfinite(ds["train_loss"].values[1]).all()
    seen = ds["seen_version"].values
    assert (seen[0, 60:] == -1).all()
    assert seen[1].min() == 0
    assert np.isnan(ds["score_loss"].values[0, 20:]).all()


def test_combine_runs__reads_ragged_variables_only_when_needed(
    tmp_path, write_demo_runs
):
    ds = combine_runs(write_demo_runs(tmp_path, n_seeds=1))
    for name in ("start_s", "score_loss", "test_accuracy"):
        assert ds[name].chunks is not None
    assert ds["final_test_accuracy"].chunks is None
    assert "params" not in ds


@pytest.mark.parametrize("most", [1, 2, 32])
def test_combine_runs__long_rows_are_read_by_themselves(
    most, tmp_path, write_demo_runs, monkeypatch
):
    paths = write_demo_runs(tmp_path, n_seeds=1)
    whole = combine_runs(paths).compute()
    monkeypatch.setattr("pipeline.run_arrays._MOST_RUNS", most)
    ds = combine_runs(paths)
    assert max(ds["test_accuracy"].chunksizes["run"]) == min(most, 3)
    xr.testing.assert_identical(ds.compute(), whole)
    monkeypatch.setattr("pipeline.run_arrays._BLOCK_BYTES", 1)
    assert combine_runs(paths)["start_s"].chunksizes["run"] == (1, 1, 1)


def test_loaded__reads_the_evaluations_and_leaves_the_updates(
    tmp_path, write_demo_runs
):
    lazy = combine_runs(write_demo_runs(tmp_path, n_seeds=1))
    ds = loaded(lazy)
    assert ds["test_accuracy"].chunks is None
    assert ds["start_s"].chunks is not None
    assert lazy["test_accuracy"].chunks is not None
    xr.testing.assert_identical(ds.compute(), lazy.compute())
    assert loaded(lazy, ["step"])["test_accuracy"].chunks is not None


def test_combine_runs__has_a_coordinate_for_every_config_field_that_varies(
    tmp_path, synthetic_run, write_run
):
    paths = [
        write_run(synthetic_run(seed=0, config={"loss": "squared"}), tmp_path),
        write_run(
            synthetic_run(
                seed=1, config={"loss": "cross-entropy", "delays": {"2": 0.05}}
            ),
            tmp_path,
        ),
        write_run(synthetic_run("sgd", seed=2), tmp_path),
    ]
    ds = combine_runs(paths)
    assert ds.attrs["config_varies"] == [
        "config.algorithm.window",
        "config.loss",
        "config.delays.2",
    ]
    assert ds["config.loss"].values.tolist() == ["squared", "cross-entropy", ""]
    np.testing.assert_array_equal(ds["config.delays.2"], [np.nan, 0.05, np.nan])
    np.testing.assert_array_equal(ds["config.algorithm.window"], [100, 100, np.nan])


def test_combine_runs__refuses_incomplete_stores_naming_each(
    tmp_path, synthetic_run, write_run
):
    good = write_run(synthetic_run(seed=0), tmp_path)
    first = write_run(synthetic_run(seed=1), tmp_path, complete=False)
    second = tmp_path / "notes.zarr"
    second.mkdir()
    with pytest.raises(ValueError, match="must be complete run stores") as caught:
        combine_runs([good, first, second])
    assert f"{first.name} (no completion marker)" in str(caught.value)
    assert "notes.zarr (a zarr.json that cannot be read" in str(caught.value)
    assert good.name not in str(caught.value)


def test_combine_runs__partial_lists_and_skips_incomplete_stores(
    tmp_path, synthetic_run, write_run
):
    good = write_run(synthetic_run(seed=0), tmp_path)
    bad = write_run(synthetic_run(seed=1), tmp_path, complete=False)
    ds = combine_runs([bad, tmp_path / "gone.zarr", good], partial=True)
    assert ds["seed"].values.tolist() == [0]
    assert ds.attrs["skipped"] == [
        f"{bad.name}: no completion marker",
        "gone.zarr: does not exist",
    ]
    with pytest.raises(ValueError, match="must be complete run stores"):
        combine_runs([bad], partial=True)


def test_combine_runs__refuses_nothing_and_what_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="at least one run store; got none"):
        combine_runs([])
    with pytest.raises(FileNotFoundError, match=r"gone\.zarr"):
        combine_runs([tmp_path / "gone.zarr"])


def test_combine_runs__refuses_a_store_that_lost_a_variable(
    tmp_path, synthetic_run, write_run
):
    path = write_run(synthetic_run(), tmp_path)
    shutil.rmtree(path / "val_loss")
    with pytest.raises(ValueError, match=r"damaged val_loss/.* \(missing"):
        combine_runs([path])


def test_combine_runs__refuses_a_store_whose_listed_chunk_is_gone(
    tmp_path, synthetic_run, write_run
):
    path = write_run(synthetic_run(), tmp_path)
    (path / "val_loss" / "c.0").unlink()
    with pytest.raises(ValueError, match=r"damaged val_loss/c.0 \(missing"):
        combine_runs([path])


@pytest.mark.parametrize("name", ["val_loss", "seen_version"])
def test_combine_runs__names_the_store_of_a_chunk_that_does_not_decode(
    name, tmp_path, synthetic_run, write_run
):
    path = write_run(synthetic_run(), tmp_path)
    chunk = path / name / "c.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(ValueError, match=rf"damaged {name}/c.0") as caught:
        loaded(combine_runs([path]))
    assert path.name in str(caught.value)


def test_combine_runs__counts_a_path_named_twice_once(
    tmp_path, synthetic_run, write_run
):
    path = write_run(synthetic_run(), tmp_path)
    assert combine_runs([path, str(path)]).sizes["run"] == 1


def test_combine_runs__accepts_a_failed_run_without_figures(
    tmp_path, synthetic_run, write_run
):
    end = {
        "status": "diverged",
        "stop_reason": "non-finite loss",
        "test_accuracy": None,
    }
    paths = [
        write_run(synthetic_run(seed=0), tmp_path),
        write_run(synthetic_run(seed=1, n_evals=2, attrs=end), tmp_path),
    ]
    table = summary_table(combine_runs(paths))
    assert table["status"].tolist() == ["complete", "diverged"]
    assert np.isnan(table["test_accuracy"].iloc[1])


def test_summary_table__has_the_figures_of_the_attributes(
    tmp_path, synthetic_run, write_run
):
    run = synthetic_run("nd-cao", "async", 3)
    table = summary_table(combine_runs([write_run(run, tmp_path)]))
    row = table.loc[run.attrs["run_id"]]
    for name in ("test_accuracy", "train_loss", "wall_time_s"):
        assert row[name] == run.attrs[name]
    for name in ("n_loss_evals", "n_samples", "n_gradient_evals"):
        assert row[name] == run.attrs[name]
        assert table[name].dtype == np.int64
    assert row["mean_staleness"] == 1.0
    assert row["status"] == "complete"


def test_summary_table__leaves_out_settings_that_all_runs_of_an_algorithm_share(
    tmp_path, synthetic_run, write_run
):
    paths = [
        write_run(synthetic_run("nd-cao", seed=0), tmp_path),
        write_run(synthetic_run("sgd", seed=0, config={"loss": "squared"}), tmp_path),
    ]
    table = summary_table(combine_runs(paths))
    assert "config.loss" in table
    assert "config.algorithm.window" not in table
    wider = {"algorithm": {"kind": "nd-cao", "window": 200}}
    paths.append(write_run(synthetic_run("nd-cao", seed=1, config=wider), tmp_path))
    table = summary_table(combine_runs(paths))
    np.testing.assert_array_equal(table["config.algorithm.window"], [100, np.nan, 200])


def test_mean_staleness__leaves_out_updates_that_saw_or_were_scored_by_nothing():
    assert mean_staleness(np.array([0, 0, 1, -1]), np.array([1, 3, -1, 1])) == 1.0
    assert np.isnan(mean_staleness(np.array([0]), np.array([-1])))


def test_compare__import_is_light():
    code = (
        "import sys, pipeline.compare, pipeline.report, pipeline.curves;"
        "bad = {'matplotlib', 'plotly', 'torch', 'distributed', 'prefect'};"
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
