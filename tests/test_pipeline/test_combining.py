"""What a combined dataset is beyond its values: laziness, selection, attributes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline.compare import COORDINATES, combine_runs, loaded
from pipeline.run_tree import run_tree


@pytest.fixture(scope="module")
def combined(tmp_path_factory, write_demo_runs):
    return combine_runs(write_demo_runs(tmp_path_factory.mktemp("results"), n_seeds=3))


def test_combined__selects_by_what_runs_are(combined):
    assert combined.sel(mode="async").sizes["run"] == 3
    assert combined.sel(seed=2).sel(mode="sync").sizes["run"] == 2
    one = combined.sel(run_id=combined["run_id"].values[4])  # one run: no dimension
    assert (one["seed"].item(), one["mode"].item()) == (1, "async")
    assert combined.isel(run=combined["seed"] > 0).sizes["run"] == 6


def test_combined__groups_by_two_coordinates_and_pairs_over_one(combined):
    nd_cao = combined["final_test_accuracy"].sel(algorithm="nd-cao")
    table = nd_cao.groupby(["mode", "seed"]).mean()
    difference = table.sel(mode="async") - table.sel(mode="sync")
    assert difference.dims == ("seed",)
    values = nd_cao.values
    np.testing.assert_array_equal(difference, values[3:] - values[:3])


def test_combined__refuses_to_pair_runs_by_position(combined):
    with pytest.raises(ValueError, match="duplicate values"):
        _ = combined["n_evals"].sel(mode="async") - combined["n_evals"].sel(seed=0)


def test_combined__everything_has_a_long_name_and_numbers_have_units(combined):
    assert combined.attrs["Conventions"] == "CF-1.11"
    for name, array in combined.variables.items():
        assert array.attrs["long_name"], name
        assert array.dtype.kind in "Ub" or array.attrs["units"], name
    assert {*COORDINATES, "store"} <= {*combined.coords}


def test_combined__a_chunk_that_does_not_decode_is_named_when_it_is_read(
    tmp_path, synthetic_run, write_run
):
    good = write_run(synthetic_run(seed=0), tmp_path)
    bad = write_run(synthetic_run(seed=1), tmp_path)
    chunk = bad / "test_accuracy" / "c.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    ds = combine_runs([good, bad])
    assert np.isfinite(ds["train_loss"]).any()
    with pytest.raises(ValueError, match=f"{bad.name} with damaged test_accuracy"):
        ds["test_accuracy"].load()


def test_run_tree__has_updates_of_each_run_at_their_own_length(
    tmp_path, synthetic_run, write_run
):
    paths = [write_run(synthetic_run(seed=n, n_evals=n), tmp_path) for n in (3, 5)]
    ds = combine_runs(paths)
    tree = run_tree(ds)
    assert {*tree.children} == {*ds["run_id"].values.tolist()}
    for path, run_id in zip(paths, ds["run_id"].values, strict=True):
        one = xr.open_zarr(path, consolidated=False)
        node = tree[str(run_id)]
        assert node.sizes["update"] == one.sizes["update"]
        for name in ("start_s", "score_losses", "score_steps"):
            assert node[name].chunks is not None
            np.testing.assert_array_equal(node[name], one[name])
            assert node[name].attrs == one[name].attrs
    assert "start_s" not in tree.to_dataset()
    assert tree["test_accuracy"].dims == ("run", "eval")


def test_run_tree__keeps_two_stores_of_one_run_apart(
    tmp_path, synthetic_run, write_run
):
    paths = [
        write_run(synthetic_run(attrs={"params_sha256": name * 64}), tmp_path / name)
        for name in ("a", "b")
    ]
    tree = run_tree(combine_runs(paths))
    (first, second) = tree.children
    assert second == f"{first}~2"


def test_loaded__values_are_those_of_the_stores(combined):
    ds = loaded(combined)
    for run, store in enumerate(combined["store"].values):
        one = xr.open_zarr(str(store), consolidated=False)
        np.testing.assert_array_equal(ds["n_samples"][run], one["n_samples"])


@pytest.mark.slow
def test_benchmark__measures_and_ends_with_its_lines():
    script = Path(__file__).parents[2] / "benchmarks" / "combine.py"
    command = [sys.executable, str(script), "--runs", "12", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 4
    assert all('"ok": true' in line for line in lines)


def test_combine__pickles_no_run_to_name_its_graph(
    tmp_path, synthetic_run, write_run, monkeypatch
):
    def refuse(*_: object) -> None:
        raise AssertionError("a run was pickled: slow with a thousand of them")

    paths = [write_run(synthetic_run(seed=seed), tmp_path) for seed in (0, 1)]
    monkeypatch.setattr("pipeline.sealed.SealedStore.__reduce_ex__", refuse)
    assert np.isfinite(loaded(combine_runs(paths))["step"]).all()
