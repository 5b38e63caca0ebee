"""``ndcao compare --export`` on runs that were really trained."""

from __future__ import annotations

import json
import shutil
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


def test_compare__writes_figures_and_takes_a_target(capsys, run_ids):
    words = ["--figures", "pictures", "--target", "val_accuracy=0.05", "--json"]
    assert run(["compare", *run_ids, *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    names = sorted(Path(p).name for p in answer["figures"])
    first = f"activity-{run_ids[0]}"
    assert names == [f"{first}.png", f"{first}.svg", "curves.png", "curves.svg"]
    assert all(Path(p).stat().st_size > 1000 for p in answer["figures"])
    page = Path(answer["report"]).read_text(encoding="utf-8")
    assert f"ndcao compare {run_ids[0]} {run_ids[1]} --out report.html" in page


@pytest.mark.parametrize("target", ["test_accuracy=0.9", "val_loss=-1", "0.9"])
def test_compare__refuses_what_is_no_target(capsys, home, target):
    assert run(["compare", "no-such-run", "--target", target]) == 2
    error = capsys.readouterr().err
    assert (
        "must be KEY=NUMBER with a key of val_accuracy, val_loss, train_loss" in error
    )


def test_compare_flow__exports_and_links_its_page(capsys, run_ids):
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    from flows.compare import compare_flow

    answer = compare_flow(
        run_ids,
        "linked.html",
        exports=["out/runs.csv"],
        target={"val_accuracy": 0.5},
        left_out=["sgd-s9: failed, worker lost"],
    )
    assert [Path(p).name for p in answer["exports"]] == ["runs.csv", "runs.columns.csv"]
    assert "Left out: sgd-s9: failed" in Path(answer["report"]).read_text("utf-8")
    from prefect import get_client

    with get_client(sync_client=True) as api:
        wanted = ArtifactFilterKey(any_=["compare-linked-page"])
        found = api.read_artifacts(artifact_filter=ArtifactFilter(key=wanted))
    uri = Path(answer["report"]).resolve().as_uri()
    assert f"[linked.html]({uri})" in found[0].data


def test_compare__an_unknown_export_is_bad_input_before_any_work(capsys, home):
    assert run(["compare", "no-such-run", "--export", "runs.xlsx"]) == 2
    error = capsys.readouterr().err
    assert "must end with .nc, .zarr, .csv, .parquet; got 'runs.xlsx'" in error
    assert not Path("report.html").exists()


def test_compare__says_what_counts_once_and_refuses_an_edited_figure(capsys, run_ids):
    (store,) = Path().rglob(f"{run_ids[1]}.zarr")
    copy = Path(shutil.copytree(store, "copy.zarr"))
    assert run(["compare", *run_ids, str(copy), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["runs"]) == 2
    (note,) = answer["notes"]
    assert note.startswith(f"{run_ids[1]} is counted once, although it is in 2 stores")
    assert run(["compare", *run_ids, str(copy)]) == 0
    assert "is counted once" in " ".join(capsys.readouterr().err.split())
    meta = json.loads((copy / "zarr.json").read_text(encoding="utf-8"))
    meta["attributes"]["test_accuracy"] = 1.0
    (copy / "zarr.json").write_text(json.dumps(meta), encoding="utf-8")
    assert run(["compare", run_ids[0], str(copy)]) == 2
    error = capsys.readouterr().err
    assert "`paths` must be complete run stores; got copy.zarr (attributes in" in error
    assert "Traceback" not in error
