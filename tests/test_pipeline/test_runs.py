"""The folder of runs: found, listed, evaluated, exported, loaded; what is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from blocks.algorithm import LossRecord
from pipeline.data_store import open_store
from pipeline.journal import Journal
from pipeline.record import mean_staleness, scored_versions
from pipeline.replay import replay
from pipeline.runs import (
    evaluate_run,
    export_run,
    find_run,
    list_runs,
    load_model,
    load_standardise,
    open_run,
    summary,
)
from pipeline.train import train


def accuracy(ds, model, store, split: str = "test") -> float:
    images, labels = store.load(split)
    pixels = torch.from_numpy(images).float() / store.pixel_scale
    with torch.no_grad():
        logits = model(load_standardise(ds)(pixels))
    return float((logits.argmax(1).numpy() == labels).mean())


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run that has learned something."""
    results = tmp_path_factory.mktemp("trained")
    config = tiny(algorithm={"kind": "adam", "step_size": 0.01}, budget={"steps": 60})
    return train(config, results=results), results


def test_evaluate_run__gives_exactly_the_recorded_accuracy(trained) -> None:
    ds, results = trained
    found = evaluate_run(ds.attrs["run_id"], results=results)
    assert found["test_accuracy"] == found["recorded_test_accuracy"]
    assert found["test_accuracy"] == ds.attrs["test_accuracy"] > 0.7
    assert found["test_loss"] == float(ds.test_loss[-1])


@pytest.mark.parametrize("which", ["sync_run", "async_run"])
def test_evaluate_run__is_exact_in_both_modes(which, request) -> None:
    ds, _ = request.getfixturevalue(which)
    found = evaluate_run(ds.attrs["store"])
    assert found["test_accuracy"] == ds.attrs["test_accuracy"]


def test_evaluate_run__of_a_network_with_buffers_is_exact(tiny, tmp_path) -> None:
    model = {"name": "resnet8", "options": {"norm": "batch"}}
    for kind in ("sgd", "nd-cao"):
        config = tiny(
            model=model, algorithm={"kind": kind}, budget={"steps": 2}, eval_every=2
        )
        ds = train(config, results=tmp_path)
        assert ds.sizes["buffer"] > 0
        found = evaluate_run(ds.attrs["run_id"], results=tmp_path)
        assert found["test_accuracy"] == ds.attrs["test_accuracy"]
        assert found["test_loss"] == float(ds.test_loss[-1])


def test_evaluate_run__on_unlike_data_is_refused(sync_run, tmp_path) -> None:
    from pipeline.store import ingest

    images = np.zeros((40, 5, 5), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez(
        tmp_path / "d.npz",
        **{"x_train": images, "y_train": labels, "x_test": images, "y_test": labels},
    )
    store = ingest("npz", source=tmp_path / "d.npz", store=tmp_path / "d.zarr").path
    with pytest.raises(ValueError, match="`dataset` must have images"):
        evaluate_run(sync_run[0].attrs["store"], dataset=store)


def test_load_model__predicts_as_accurately_as_recorded(trained, digits) -> None:
    ds, results = trained
    model = load_model(ds.attrs["run_id"], results)
    assert not model.training
    assert accuracy(ds, model, open_store(digits)) == pytest.approx(
        ds.attrs["test_accuracy"], abs=1e-12
    )
    assert accuracy(ds, load_model(ds), open_store(digits), "val") == pytest.approx(
        float(ds.val_accuracy[-1]), abs=1e-12
    )


@pytest.mark.parametrize("use", [open_run, evaluate_run, replay])
def test_open_run__a_data_store_is_no_run(digits, use) -> None:
    with pytest.raises(ValueError, match=r"must be a run that ndcao kept; .*See `ndc"):
        use(digits)


def test_results__default_to_the_home_folder(trained, tmp_path, monkeypatch) -> None:
    ds, results = trained
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    shutil.copytree(results, tmp_path / "results")
    assert [r.run_id for r in list_runs()] == [ds.attrs["run_id"]]
    assert (
        evaluate_run(ds.attrs["run_id"])["test_accuracy"] == ds.attrs["test_accuracy"]
    )


def test_find_run__by_path_by_id_and_by_the_start_of_an_id(trained, tmp_path) -> None:
    ds, results = trained
    folder, run_id = results / "default", ds.attrs["run_id"]
    for name in (run_id, run_id[:12], ds.attrs["store"], Path(ds.attrs["store"])):
        assert find_run(name, results) == (folder, run_id)
    with pytest.raises(FileNotFoundError, match="nothing under"):
        find_run("sgd", results)


def test_find_run__what_fits_several_runs_is_an_error(tmp_path) -> None:
    for name in ("a/sgd-1.zarr", "a/sgd-12.zarr", "b/sgd-2.zarr"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"must name one run.*a/sgd-1, a/sgd-12, b/sgd"
    ):
        find_run("sgd", tmp_path)
    assert find_run("sgd-1", tmp_path) == (tmp_path / "a", "sgd-1")


def test_list_runs__lists_damaged_stores_as_such(trained, tmp_path) -> None:
    ds, results = trained
    shutil.copytree(results, tmp_path / "r")
    (tmp_path / "r/default/broken.zarr").mkdir()
    (tmp_path / "r/default/cut.checkpoint.npz").write_bytes(b"")
    status = {r.run_id: r.status for r in list_runs(tmp_path / "r")}
    assert status == {
        **{ds.attrs["run_id"]: "complete"},
        **{"broken": "damaged", "cut": "interrupted"},
    }
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ('{"zarr_format": 3, "node_type": "group", "attributes": {}}', "foreign"),
        ('{"attributes": {"complete": true, "classes": 3}}', "foreign"),
        ('{"attributes": {"run_id": "x", "complete": true}}', "damaged"),
        ('{"attributes": {"run_id": "x", "complete": true, "status": 3}}', "damaged"),
        ('{"attributes": 3}', "damaged"),
        ('{"attributes": null}', "damaged"),
        ('["attributes"]', "damaged"),
        ("3", "damaged"),
        ("[" * 100_000, "damaged"),
        ("\xff", "damaged"),
        ("", "damaged"),
        (None, "damaged"),
    ],
)
def test_list_runs__a_strangers_folder_hides_no_run(
    content, status, trained, tmp_path
) -> None:
    ds, _ = trained
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "run.zarr").symlink_to(ds.attrs["store"])
    other = tmp_path / "default" / "other.zarr"
    other.mkdir()
    if content is not None:
        (other / "zarr.json").write_text(content, encoding="latin-1")
    (tmp_path / "default" / "file.zarr").write_text("no folder")
    (tmp_path / "default" / "loop.zarr").symlink_to("loop.zarr")
    assert {r.run_id: r.status for r in list_runs(tmp_path)} == {
        **{"run": "complete", "other": status},
        **{"file": "damaged", "loop": "damaged"},
    }


def test_summary__is_one_json_line(trained) -> None:
    ds, _ = trained
    line = json.loads(json.dumps(summary(ds)))
    assert list(line) == [
        *("run_id", "store", "status", "stop_reason", "test_accuracy", "train_loss"),
        *("n_loss_evals", "n_samples", "wall_time_s", "params_sha256"),
        "warnings",
    ]
    assert None not in line.values()


def test_export_run__other_tools_read_its_tensors(trained, tmp_path) -> None:
    from safetensors import safe_open

    ds, results = trained
    path = export_run(ds.attrs["run_id"], tmp_path / "m.safetensors", results)
    state = load_model(ds).state_dict()
    with safe_open(path, "pt") as file:
        assert file.metadata()["run_id"] == ds.attrs["run_id"]
        more = {"standardise.mean", "standardise.std"}
        assert set(file.keys()) == set(state) | more
        for name in state:
            assert torch.equal(file.get_tensor(name), state[name])


def journal_by_hand() -> Journal:
    """Two nodes; version v scored the steps given. Node 1 is slow."""
    scored = {0: (0, 0), 1: (1, 0), 2: (2, 1), 3: (2, 1), 4: (4, 2)}
    updates = [
        *((0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 2), (0, 4, 4)),
        *((1, 0, 0), (1, 1, 1)),
    ]
    return Journal(
        updates=[(*u, 0.0, 0.0, 0) for u in updates],
        scores=[(LossRecord("r", v, (1.0,), s), 0.0, 0.0) for v, s in scored.items()],
    )


def test_scored_version__is_the_first_that_scored_the_updates_point() -> None:
    #  node 0: points 1, 2 first scored by versions 1, 2; point 3 by none (overtaken by
    #  point 4, first in version 4); point 5 not yet.  node 1: points 1, 2 by 2 and 4.
    assert scored_versions(journal_by_hand()).tolist() == [1, 2, -1, 4, -1, 2, 4]


def test_staleness__is_the_versions_between_what_was_seen_and_what_scored_it() -> None:
    #  1-0-1, 2-1-1, –, 4-2-1, –, 2-0-1, 4-1-1  →  0, 0, 1, 1, 2
    assert mean_staleness(journal_by_hand()) == pytest.approx(4 / 5)
    assert np.isnan(mean_staleness(Journal()))


def test_staleness__of_a_synchronous_run_is_zero(sync_run) -> None:
    ds, _ = sync_run
    scored = ds.scored_version.values
    assert ((scored - ds.seen_version.values - 1)[scored >= 0] == 0).all()
    assert (ds.update_step.values[scored < 0] == 8).all()  # the last points
