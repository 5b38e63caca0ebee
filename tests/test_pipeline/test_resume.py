"""Interrupted runs: a checkpoint, and the same result as if nothing had happened."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline import pack
from pipeline.replay import replay
from pipeline.runs import list_runs
from pipeline.train import resume, train


class StopAt:
    """A progress watcher that interrupts the run at a round."""

    def __init__(self, round_: int) -> None:
        self.round, self.event = round_, threading.Event()

    def __call__(self, progress) -> None:
        if progress.phase == "training" and progress.round >= self.round:
            self.event.set()


def interrupted(config, results, at: int = 6):
    """Train until round ``at``, then stop as Ctrl-C does."""
    stop = StopAt(at)
    ds = train(config, results=results, progress=stop, stop=stop.event)
    assert ds.attrs["status"] == ds.attrs["stop_reason"] == "interrupted"
    assert not list(results.rglob("*.zarr"))
    return ds


ALGORITHMS = {
    "nd-cao": {"window": 12},
    "nd-cao-probes": {"probes": 4},
    "nd-cao-monomials": {"estimator": "monomials", "monomials_kept": 0.5},
    "sgd": {"kind": "sgd"},
    "adam": {"kind": "adam"},
    "open-es": {"kind": "open-es", "population_size": 6},
}


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_resume__ends_bit_for_bit_as_an_uninterrupted_run(name, tiny, tmp_path) -> None:
    config = tiny(
        algorithm=ALGORITHMS[name], budget={"steps": 30}, eval_every=7, redraw_every=4
    )
    whole = train(config, results=tmp_path / "whole")
    stopped = interrupted(config, tmp_path / "cut")
    assert 0 < stopped.step.values[-1] < 30
    ds = resume(stopped.attrs["run_id"], results=tmp_path / "cut")
    assert ds.attrs["status"] == "complete"
    for attribute in ("params_sha256", "run_id", "n_samples", "bytes_moved"):
        assert ds.attrs[attribute] == whole.attrs[attribute]
    timeless = [n for n in ds.variables if not n.endswith("_s")]
    for variable in timeless:
        np.testing.assert_array_equal(ds[variable], whole[variable], str(variable))
    assert not list((tmp_path / "cut").rglob("*.npz"))


def test_resume__keeps_the_form_that_was_calibrated(tiny, tmp_path) -> None:
    probes = {"kind": "open-es", "population_size": 8, "rank": 1}
    config = tiny(algorithm=probes, budget={"steps": 20}, evaluation_form="loop")
    whole = train(config, results=tmp_path / "whole")
    stopped = interrupted(config, tmp_path / "cut")
    ds = resume(stopped.attrs["run_id"], results=tmp_path / "cut")
    assert json.loads(ds.attrs["config"])["evaluation_form"] == "loop"
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]
    assert replay(ds.attrs["store"])["matches"]


def test_train__continues_an_interrupted_run_by_itself(
    tiny, tmp_path, sync_run
) -> None:
    config = tiny(eval_every=1)
    interrupted(config, tmp_path, at=3)
    ds = train(config, results=tmp_path)
    assert ds.attrs["params_sha256"] == sync_run[0].attrs["params_sha256"]


def test_resume__twice_is_the_same_again(tiny, tmp_path) -> None:
    config = tiny(budget={"steps": 30}, eval_every=5)
    whole = train(config, results=tmp_path / "whole")
    run_id = interrupted(config, tmp_path / "cut", at=6).attrs["run_id"]
    stop = StopAt(16)
    again = resume(run_id, results=tmp_path / "cut", progress=stop, stop=stop.event)
    assert again.attrs["status"] == "interrupted"
    ds = resume(run_id, results=tmp_path / "cut")
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]


@pytest.mark.parametrize("staleness", [None, 2])
def test_async_resume__replays(staleness, tiny, tmp_path) -> None:
    config = tiny(
        mode="async",
        staleness=staleness,
        budget={"steps": 60},
        delays={1: 0.02},
        checkpoint_every_s=0.02,
    )
    stop = threading.Event()

    def after_ten_steps(progress) -> None:
        if progress.phase == "training" and progress.round >= 10:
            stop.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.asynchronous.TELL_S", 0.0)
        ds = train(config, results=tmp_path, progress=after_ten_steps, stop=stop)
    assert ds.attrs["status"] == "interrupted"
    ds = resume(ds.attrs["run_id"], results=tmp_path)
    assert ds.attrs["status"] == "complete"
    pairs = list(zip(ds.update_node.values, ds.update_step.values, strict=True))
    assert sorted(pairs) == [(n, k) for n in range(3) for k in range(1, 61)]
    assert (np.diff(ds.score_version) == 1).all()
    assert (np.diff(ds.score_end_s) > 0).all()
    line = replay(ds.attrs["run_id"], results=tmp_path)
    assert line["matches"]
    assert line["losses_match"]


def test_a_crash_during_training__loses_no_finished_piece(
    tiny, tmp_path, monkeypatch
) -> None:
    from pipeline.engines import InProcess

    run, config = InProcess.run, tiny(budget={"steps": 30}, eval_every=5)
    whole = train(config, results=tmp_path / "whole")

    def fail_later(self, first, *rest):
        if first >= 15:
            raise OSError("the cluster is gone")
        return run(self, first, *rest)

    monkeypatch.setattr(InProcess, "run", fail_later)
    with pytest.raises(OSError, match="the cluster is gone"):
        train(config, results=tmp_path)
    monkeypatch.undo()
    (info,) = [i for i in list_runs(tmp_path) if i.status == "interrupted"]
    assert pack.load(info.path)["done"] == 15
    ds = train(config, results=tmp_path)
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]


def test_resume__finds_a_data_store_that_was_given_by_path(
    tiny, digits, tmp_path
) -> None:
    config = tiny(dataset="elsewhere", budget={"steps": 20}, eval_every=1)
    stop = StopAt(3)
    ds = train(config, results=tmp_path, store=digits, progress=stop, stop=stop.event)
    assert resume(ds.attrs["run_id"], results=tmp_path).attrs["status"] == "complete"


def test_resume__a_finished_run_says_so(sync_run) -> None:
    ds, results = sync_run
    assert resume(ds.attrs["run_id"], results=results).attrs["status"] == "exists"


def test_resume__an_unknown_run_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nobody"):
        resume("nobody", results=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "format", "other"])
def test_resume__a_damaged_checkpoint_is_a_clear_error(damage, tiny, tmp_path) -> None:
    config = tiny(eval_every=1)
    run_id = interrupted(config, tmp_path, at=3).attrs["run_id"]
    (path,) = tmp_path.rglob("*.npz")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        saved = pack.load(path) if damage == "format" else {}
        pack.save(path, saved | {"format": 99} if saved else [1])
    for start in (
        lambda: resume(run_id, results=tmp_path),
        lambda: train(config, results=tmp_path),
    ):
        with pytest.raises(
            ValueError, match=r"`checkpoint` must be.*again with --again"
        ):
            start()
    assert train(config, results=tmp_path, again=True).attrs["status"] == "complete"


def test_checkpoint__loads_without_pickle_and_names_its_run(tiny, tmp_path) -> None:
    ds = interrupted(tiny(eval_every=1), tmp_path, at=3)
    (path,) = tmp_path.rglob("*.npz")
    assert ds.attrs["store"] == str(path)
    with np.load(path, allow_pickle=False) as file:
        tree = json.loads(file["tree"].tobytes())
        assert {file[name].dtype.kind for name in file.files} <= set("uif")
    assert isinstance(tree, dict)
    (info,) = list_runs(tmp_path)
    assert (info.status, info.run_id) == ("interrupted", ds.attrs["run_id"])


def test_resume__after_the_last_step_only_ends_what_was_left(
    tiny, tmp_path, monkeypatch
) -> None:
    """A process killed between its last checkpoint and its store."""
    config = tiny(budget={"steps": 8}, eval_every=4, checkpoint_every_s=0.0)
    whole = train(config, results=tmp_path / "whole")

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.train.write_run", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, results=tmp_path / "cut")
    ds = train(config, results=tmp_path / "cut")
    assert ds.attrs["stop_reason"] == "budget: steps"
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]
    for variable in [n for n in ds.variables if not n.endswith("_s")]:
        np.testing.assert_array_equal(ds[variable], whole[variable], str(variable))


@pytest.mark.parametrize(
    "secret",
    [
        {"options": {"env": {"TOKEN": "hunter2"}, "cores": 4}},
        {"tls": {"ca_file": "hunter2/ca", "cert": "hunter2/c", "key": "hunter2/k"}},
    ],
)
def test_records__keep_which_options_there_were_and_no_values(
    secret, tiny, tmp_path
) -> None:
    config = tiny(cluster={"kind": "in-process", **secret}, checkpoint_every_s=0.0)
    stopped = interrupted(config, tmp_path)
    checkpoint = pack.load(Path(stopped.attrs["store"]))
    assert "hunter2" not in checkpoint["config"] + stopped.attrs["config"]
    (section,) = secret
    with pytest.raises(ValueError, match=f"`cluster.{section}` must be given again"):
        resume(stopped.attrs["run_id"], results=tmp_path)
    assert json.loads(checkpoint["config"])["cluster"][section].keys() == {
        *secret[section]
    }
    ds = resume(stopped.attrs["run_id"], results=tmp_path, cluster=secret)
    assert ds.attrs["status"] == "complete"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes()


def test_records__a_run_goes_on_by_training_again_or_elsewhere(tiny, tmp_path) -> None:
    config = tiny(
        cluster={"kind": "in-process", "options": {"password": "hunter2"}},
        checkpoint_every_s=0.0,
    )
    run_id = interrupted(config, tmp_path).attrs["run_id"]
    assert train(config, results=tmp_path).attrs["status"] == "complete"
    again = interrupted(config, tmp_path / "other")
    ds = resume(run_id, results=tmp_path / "other", cluster={"options": {}})
    assert ds.attrs["run_id"] == again.attrs["run_id"] == run_id
