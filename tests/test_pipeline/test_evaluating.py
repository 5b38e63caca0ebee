"""A kept network is scored on the data that are meant, or the sentence says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.data_store import open_store
from pipeline.replay import replay
from pipeline.run_store import open_run, write_run
from pipeline.runs import evaluate_run
from pipeline.store import ingest
from pipeline.train import train


def images(folder: Path, *, names=("cat", "dog", "elk"), seed: int = 0) -> Path:
    """Ingest three kinds of images that differ in brightness: easily told apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    bright = {"cat": 20, "dog": 120, "elk": 220}
    level = np.array([bright.get(n, 60 * i) for i, n in enumerate(names)])[labels]
    pixels = level[:, None, None] + rng.integers(-9, 10, (90, 8, 8))
    raw = folder / "raw.npz"
    folder.mkdir(parents=True, exist_ok=True)
    split = {"x_train": pixels[:60], "x_test": pixels[60:]}
    whole = {name: part.astype(np.uint8) for name, part in split.items()}
    named = {"y_train": labels[:60], "y_test": labels[60:], "class_names": list(names)}
    np.savez(raw, **whole, **named)
    return ingest("npz", source=raw, store=folder / "data" / "pets.zarr").path


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny):
    """A home with data and results; the run was trained from inside, by relative path.

    Its loss depends on the order of the classes, so mapping must be of the labels.
    """
    home = tmp_path_factory.mktemp("home")
    images(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        config = tiny(
            dataset="data/pets.zarr",
            algorithm={"kind": "adam", "step_size": 0.05},
            loss_samples=30,
            budget={"steps": 120},
        )
        ds = train(config, results="results")
    assert ds.attrs["test_accuracy"] == 1.0
    return home, home / ds.attrs["store"]


@pytest.fixture
def moved(learned, tmp_path):
    """A copy of the home somewhere else; the original one is not there to be found."""
    home, store = learned
    shutil.copytree(home, tmp_path / "moved")
    run = tmp_path / "moved" / store.relative_to(home)
    ds = open_run(run)
    ds.attrs["data_store_absolute"] = str(tmp_path / "gone" / "pets.zarr")
    write_run(ds, run)
    return tmp_path / "moved", run


def test_evaluate__finds_a_runs_own_data_from_another_folder(
    learned, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path, names=("dog", "elk", "cat"))  # other data at the same path
    assert open_run(learned[1]).attrs["data_store"] == "data/pets.zarr"
    found = evaluate_run(learned[1])
    assert (found["test_accuracy"], found["warnings"]) == (1.0, [])
    assert replay(learned[1])["matches"]


def test_evaluate__finds_data_that_moved_together_with_the_results(
    moved, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate_run(moved[1])["test_accuracy"] == 1.0
    assert replay(moved[1])["matches"]


def test_evaluate__reads_a_run_of_an_older_version_without_an_absolute_path(
    moved, monkeypatch
) -> None:
    ds = open_run(moved[1])
    del ds.attrs["data_store_absolute"]
    write_run(ds, moved[1])
    monkeypatch.chdir(moved[0])
    assert evaluate_run(moved[1])["test_accuracy"] == 1.0


@pytest.mark.parametrize("read", [evaluate_run, replay])
def test_evaluate__other_content_at_the_recorded_path_is_refused(
    read, moved, monkeypatch
) -> None:
    monkeypatch.chdir(moved[0])
    shutil.rmtree(moved[0] / "data")
    images(moved[0], seed=1)
    with pytest.raises(ValueError, match="`dataset` must be the one that adam-"):
        read(moved[1])
    named = evaluate_run(moved[1], dataset=moved[0] / "data" / "pets.zarr")
    assert named["test_accuracy"] == 1.0  # other images of the same classes


def test_evaluate__of_a_run_whose_data_are_gone_names_them(moved, monkeypatch) -> None:
    monkeypatch.chdir(moved[0])
    shutil.rmtree(moved[0] / "data")
    with pytest.raises(FileNotFoundError, match=r"`dataset` .*data/pets\.zarr"):
        evaluate_run(moved[1])


def test_evaluate__maps_classes_that_have_another_order(learned, tmp_path) -> None:
    other = images(tmp_path, names=("elk", "cat", "dog"))
    found = evaluate_run(learned[1], dataset=other)
    same = evaluate_run(learned[1])
    assert found["test_accuracy"] == 1.0
    assert found["test_loss"] == pytest.approx(same["test_loss"], rel=0.5)
    assert found["warnings"] == []


@pytest.mark.parametrize("names", [("cat", "dog", "fox"), ("0", "1", "2")])
def test_evaluate__other_classes_are_refused_by_name(names, learned, tmp_path) -> None:
    other = images(tmp_path, names=names)
    with pytest.raises(
        ValueError, match=r"`dataset` must have the run's classes 'cat'"
    ):
        evaluate_run(learned[1], dataset=other)


def test_evaluate__says_when_its_own_data_give_another_score(
    learned, tmp_path, caplog
) -> None:
    copy = tmp_path / learned[1].name
    ds = open_run(learned[1])
    ds["params"][0] += 0.25
    write_run(ds, copy)
    text = evaluate_run(copy)["warnings"][-1]
    assert text == caplog.messages[-1]
    assert "must score on its own data as recorded, accuracy 1 and loss" in text


def test_evaluate__allows_rounding_on_another_platform_only(learned, tmp_path) -> None:
    copy = tmp_path / learned[1].name
    ds = open_run(learned[1])
    ds["test_loss"][-1] *= 1 + 1e-6
    write_run(ds, copy)
    assert len(evaluate_run(copy)["warnings"]) == 1
    hardware = json.loads(ds.attrs["hardware"]) | {"processor": "another"}
    ds.attrs["hardware"] = json.dumps(hardware)
    write_run(ds, copy)
    assert evaluate_run(copy)["warnings"] == []


def test_a_run_records_where_its_data_lay_relative_and_absolute(learned) -> None:
    home, store = learned
    attrs = open_run(store).attrs
    assert attrs["data_store"] == "data/pets.zarr"
    assert attrs["data_store_absolute"] == str((home / "data" / "pets.zarr").resolve())
    assert attrs["data_sha256"] == open_store(home / "data/pets.zarr").content_sha256
