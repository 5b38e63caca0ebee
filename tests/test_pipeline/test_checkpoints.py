"""Whose a checkpoint is: another run's is refused, one that is over is let go."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from pipeline import pack
from pipeline.runs import list_runs, open_run
from pipeline.sealed import SEAL, _attributes_hash
from pipeline.train import resume, train

ASYNC = {"mode": "async", "delays": {1: 0.02}, "checkpoint_every_s": 0.0}


def stopped(config, results, **options):
    """A run that is interrupted before its first step."""
    event = threading.Event()
    event.set()
    ds = train(config, results=results, stop=event, **options)
    assert ds.attrs["status"] == "interrupted"
    return ds


def killed_before_the_checkpoint_is_removed(config, results):
    """Train until the store is in its place, and no further."""

    def killed(self, missing_ok=False) -> None:
        if self.name.endswith(".checkpoint.npz"):
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    unlink = Path.unlink
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, results=results)
    (store,), (checkpoint,) = results.rglob("*.zarr"), results.rglob("*.checkpoint.npz")
    return store, checkpoint


@pytest.mark.parametrize("flags", [{"checkpoint_every_s": 0.0}, ASYNC])
@pytest.mark.parametrize("how", ["resume", "train"])
def test_a_run_killed_between_store_and_checkpoint__is_complete_and_never_replaced(
    how, flags, tiny, tmp_path
) -> None:
    config = tiny(**flags)
    store, checkpoint = killed_before_the_checkpoint_is_removed(config, tmp_path)
    before = open_run(store)
    (info,) = list_runs(tmp_path)
    assert (info.status, info.path) == ("complete", store)
    if how == "resume":
        ds = resume(before.attrs["run_id"], results=tmp_path)
    else:
        ds = train(config, results=tmp_path)
    assert ds.attrs["status"] == "exists"
    assert not checkpoint.exists()
    assert open_run(store).identical(before)


def test_a_checkpoint_of_an_older_version__is_over_when_the_store_is_newer(
    tiny, tmp_path
) -> None:
    config = tiny(**ASYNC)
    store, checkpoint = killed_before_the_checkpoint_is_removed(config, tmp_path)
    written = os.stat(checkpoint)
    saved = pack.load(checkpoint)
    pack.save(checkpoint, {k: v for k, v in saved.items() if k != "replaces"})
    os.utime(checkpoint, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert resume(checkpoint).attrs["status"] == "exists"
    assert (store.exists(), checkpoint.exists()) == (True, False)


def test_resume__with_again__goes_on_beside_the_older_run_and_then_takes_its_place(
    tiny, tmp_path
) -> None:
    config = tiny(**ASYNC)
    old = train(config, results=tmp_path)
    stopped(config, tmp_path, again=True)
    assert {i.status for i in list_runs(tmp_path)} == {"complete", "interrupted"}
    assert train(config, results=tmp_path).attrs["status"] == "exists"
    new = resume(old.attrs["run_id"], results=tmp_path)
    assert new.attrs["status"] == "complete"
    assert open_run(old.attrs["store"]).attrs["wall_time_s"] == new.attrs["wall_time_s"]
    (info,) = list_runs(tmp_path)
    assert info.status == "complete"


def test_a_checkpoint_that_is_over__stays_while_the_store_beside_it_is_damaged(
    tiny, tmp_path
) -> None:
    store, checkpoint = killed_before_the_checkpoint_is_removed(tiny(**ASYNC), tmp_path)
    (store / "params" / "c.0").write_bytes(b"")
    with pytest.raises(ValueError, match="`run` must be complete and unchanged"):
        resume(checkpoint)
    assert checkpoint.exists()


@pytest.mark.parametrize("how", ["resume", "train"])
def test_a_checkpoint_under_another_runs_name__is_refused_in_a_sentence(
    how, tiny, tmp_path
) -> None:
    config = tiny()
    mine = Path(stopped(config, tmp_path).attrs["store"])
    other = Path(stopped(tiny(seed=1), tmp_path).attrs["store"])
    shutil.copy(other, mine)
    with pytest.raises(
        ValueError,
        match=r"`checkpoint` must be of the run that its file is named after",
    ) as caught:
        resume(mine) if how == "resume" else train(config, results=tmp_path)
    assert other.name.removesuffix(".checkpoint.npz") in str(caught.value)
    assert not list(tmp_path.rglob("*.zarr"))
    assert train(config, results=tmp_path, again=True).attrs["status"] == "complete"


def test_train__a_checkpoint_with_other_settings_than_its_name_is_refused(
    tiny, tmp_path
) -> None:
    config = tiny()
    path = Path(stopped(config, tmp_path).attrs["store"])
    saved = pack.load(path)
    settings = json.loads(saved["config"]) | {"loss": "squared"}
    pack.save(path, saved | {"config": json.dumps(settings)})
    with pytest.raises(ValueError, match=r"settings of its run; got another `loss`"):
        train(config, results=tmp_path)


@pytest.mark.parametrize(
    "name", ["../../out", "a/b", "..\\out", "a\nb", "a\x1b[2J", "", " ", "é" * 100]
)
def test_train__a_data_stores_name_leads_nowhere(name, tiny, digits, tmp_path) -> None:
    store = tmp_path / "data" / "mine.zarr"
    shutil.copytree(digits, store)
    meta = json.loads((store / "zarr.json").read_text())
    attrs = {**meta["attributes"], "name": name}
    del attrs[SEAL]
    attrs[SEAL] = _attributes_hash(attrs)  # as who makes such a store can
    meta["attributes"] = attrs
    (store / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"must be complete and unchanged.* name with"):
        train(tiny(dataset=str(store)), results=tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_resume__a_checkpoints_run_id_leads_nowhere(tiny, tmp_path) -> None:
    path = Path(stopped(tiny(), tmp_path / "results").attrs["store"])
    pack.save(path, pack.load(path) | {"run_id": "../../out"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"must be of the run that its file is named"):
        resume(path, results=tmp_path / "results")
    assert sorted(tmp_path.rglob("*")) == before


def test_train__another_runs_store_under_this_runs_name_is_refused(
    tiny, tmp_path
) -> None:
    mine = Path(train(tiny(), results=tmp_path).attrs["store"])
    other = Path(train(tiny(seed=1), results=tmp_path).attrs["store"])
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    with pytest.raises(ValueError, match=r"`run` must lie under its own id.*-s1-"):
        train(tiny(), results=tmp_path)
    assert train(tiny(), results=tmp_path, again=True).attrs["status"] == "complete"
