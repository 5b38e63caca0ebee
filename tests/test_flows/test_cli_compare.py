"""``ndcao compare --export`` on runs that were really trained."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from flows.cli import run

QUICK = ("--set=cluster.kind=in-process", "--set=blocks=by_unit:5", "--budget=steps=4")


@pytest.fixture
def run_ids(capsys, home):
    lines = []
    for seed in ("0", "1"):
        assert run(["train", *QUICK, "--seed", seed, "--quiet", "--json"]) == 0
        lines.append(json.loads(capsys.readouterr().out)["run_id"])
    return lines


def test_compare__exports_files_that_other_tools_open(capsys, run_ids):
    exports = ["--export", "out/runs.nc", "--export", "out/runs.csv"]
    assert run(["compare", *run_ids, *exports, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [Path(p).name for p in answer["exports"]] == [
        "runs.nc",
        "runs.csv",
        "runs.columns.csv",
    ]
    with xr.open_dataset("out/runs.nc") as ds:
        assert ds["run_id"].values.tolist() == run_ids
        assert ds["wall_time_s"].attrs["units"] == "s"
    table = pd.read_csv("out/runs.csv")
    last = table.groupby("run_id", sort=False)["test_accuracy"].last()
    wanted = [row["test_accuracy"] for row in answer["runs"]]
    assert last.tolist() == pytest.approx(wanted)


def test_compare__an_unknown_export_is_bad_input_before_any_work(capsys, home):
    assert run(["compare", "no-such-run", "--export", "runs.xlsx"]) == 2
    error = capsys.readouterr().err
    assert "must end with .nc, .zarr, .csv, .parquet; got 'runs.xlsx'" in error
    assert not Path("report.html").exists()
