"""Outputs replace only what is such an output, and nothing in a Zarr store."""

import re

import pytest

from pipeline.compare import combine_runs
from pipeline.curves import write_curves
from pipeline.exports import write_export
from pipeline.outputs import KINDS, check_folder, may_write, store_around
from pipeline.places import given_path
from pipeline.report import write_report
from pipeline.report_figures import write_figures
from pipeline.runs import export_run, find_run, results_folder
from pipeline.store import resolve_store
from pipeline.train import train

NAMES = [
    (kind, f"precious{suffix}") for kind in KINDS for suffix in KINDS[kind].suffixes
]
CONTENTS = (
    b"import torch\n",
    b"\x89PNG\r\n\x1a\n" + bytes(200),
    b"<!DOCTYPE html><title>ndcao</title>",
    b"PAR1" + bytes(200),
    b"\x89HDF\r\n\x1a\n" + bytes(200),
    b"run_id,other\n1,2\n",
    (9).to_bytes(8, "little") + b'{"a":[1]}',
    b"\xff" * 64,
)


@pytest.fixture
def combined(tmp_path, synthetic_run, write_run):
    runs = [synthetic_run("nd-cao", mode, 0) for mode in ("sync", "async")]
    return combine_runs([write_run(run, tmp_path / "runs") for run in runs])


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_may_write__does_not_replace_what_is_no_such_output(kind, name, tmp_path):
    for content in CONTENTS:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileExistsError, match="`out` must not replace what is not"):
            may_write(tmp_path / name, kind, "out")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match="`out` must not replace"):
        may_write(tmp_path / name, kind, "out")


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_may_write__takes_a_new_name_and_an_empty_file(kind, name, tmp_path) -> None:
    assert may_write(tmp_path / name, kind, "out") == tmp_path / name
    (tmp_path / name).touch()
    assert may_write(tmp_path / name, kind, "out") == tmp_path / name


@pytest.mark.parametrize("kind", KINDS)
def test_may_write__refuses_other_suffixes_empty_names_and_places_in_stores(
    kind, tmp_path
) -> None:
    suffix = KINDS[kind].suffixes[0]
    with pytest.raises(ValueError, match=r"`out` must end with .*mynet\.py"):
        may_write(tmp_path / "mynet.py", kind, "out")
    with pytest.raises(ValueError, match="`out` must not be empty"):
        may_write("", kind, "out")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".zgroup").touch()
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for place in ("run.zarr", "run.zarr/params/c", "old", "link"):
        with pytest.raises(ValueError, match="`out` must not lie inside a Zarr store"):
            may_write(tmp_path / place / f"x{suffix}", kind, "out")
        with pytest.raises(ValueError, match="`out` must not lie inside a Zarr store"):
            check_folder(tmp_path / place, "out")
    assert store_around(tmp_path / "x") is None


def test_outputs__of_ours_are_replaced_by_the_next(combined, tmp_path, sync_run):
    run = sync_run[0].attrs["store"]
    for _ in range(2):
        write_report(combined, tmp_path / "page.html")
        write_curves(combined, tmp_path / "curves.svg")
        for suffix in ("nc", "csv", "parquet"):
            write_export(combined, tmp_path / f"runs.{suffix}")
        write_figures(combined, tmp_path / "figures")
        export_run(run, tmp_path / "net.safetensors")


def test_outputs__a_page_of_an_earlier_release_is_replaced(combined, tmp_path) -> None:
    page = write_report(combined, tmp_path / "page.html")
    marker = '<meta name="generator" content="ndcao">\n'
    page.write_text(page.read_text().replace(marker, ""))
    assert marker in write_report(combined, page).read_text()


def test_outputs__a_file_of_another_in_a_folder_of_figures_stops_all(
    combined, tmp_path
) -> None:
    (tmp_path / "curves.svg").write_text("<svg/>")
    with pytest.raises(FileExistsError, match=re.escape("curves.svg")):
        write_figures(combined, tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == []


def test_outputs__units_of_a_table_replace_no_other_table(combined, tmp_path) -> None:
    (tmp_path / "runs.columns.csv").write_text("a,b\n")
    with pytest.raises(FileExistsError, match=r"runs\.columns\.csv"):
        write_export(combined, tmp_path / "runs.csv")
    assert not (tmp_path / "runs.csv").exists()


def test_train__no_results_inside_a_data_store(tiny, tmp_path) -> None:
    for place in (tmp_path / "new.zarr", tmp_path / "new.zarr" / "results"):
        with pytest.raises(ValueError, match="`results` must not lie inside a Zarr"):
            train(tiny(), results=place)
        assert not place.exists()


@pytest.mark.parametrize(
    ("call", "setting"),
    [
        (find_run, "run"),
        (lambda name: find_run(name, "results", checkpoint=True), "run"),
        (results_folder, "results"),
        (resolve_store, "dataset"),
        (lambda name: export_run("run", name), "path"),
    ],
)
@pytest.mark.parametrize("name", ["", " "])
def test_names__an_empty_one_is_refused(call, setting, name) -> None:
    with pytest.raises(ValueError, match=f"`{setting}` must not be empty"):
        call(name)


def test_given_path__knows_homes(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_path("~/r", "results") == tmp_path / "r"
    with pytest.raises(ValueError, match="`results` must begin with ~ or"):
        given_path("~nobody-of-this-name/r", "results")


@pytest.mark.parametrize("name", ["9" * 300, "a\0b", "\ud800"])
def test_given_path__refuses_what_no_file_system_holds(name) -> None:
    with pytest.raises(ValueError, match="`run` must have names of 1 to 255 bytes"):
        given_path(f"results/{name}", "run")
    assert str(given_path(".", "run")) == "."
