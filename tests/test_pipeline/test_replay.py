"""Replay: the final parameters from the record alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.replay import replay
from pipeline.run_store import open_run, write_run
from pipeline.train import train


def blanked(ds, folder, **changed):
    """Store a copy of a run that holds no parameters, or something else than it did."""
    gone = {n: np.zeros_like(ds[n].values) for n in ("params", "best_params")}
    copy = ds.copy(deep=True)
    for name, values in (gone | changed).items():
        copy[name].values[...] = values
    return write_run(copy, folder / "default" / f"{ds.attrs['run_id']}.zarr")


@pytest.mark.parametrize("which", ["sync_run", "async_run"])
def test_replay__gives_the_final_parameters_of_a_copy_without_them(
    which, request, tmp_path
) -> None:
    ds, _ = request.getfixturevalue(which)
    path = blanked(ds, tmp_path)
    line = replay(path, results=tmp_path)
    assert line["matches"]
    assert line["losses_match"]
    assert line["same_platform"]
    assert line["params_sha256"] == ds.attrs["params_sha256"]
    assert line["status"] == "replayed"


def test_replay__reads_no_recorded_loss_but_to_compare(async_run, tmp_path) -> None:
    ds, _ = async_run
    path = blanked(ds, tmp_path, score_losses=ds.score_losses.values * 2)
    line = replay(path, results=tmp_path)
    assert line["matches"]
    assert not line["losses_match"]


def test_replay__another_order_of_reads_gives_other_parameters(
    async_run, tmp_path
) -> None:
    ds, _ = async_run
    seen = ds.seen_version.values.copy()
    last = np.flatnonzero(ds.update_step.values == ds.update_step.values.max())
    seen[last] = seen[last] - 1
    line = replay(blanked(ds, tmp_path, seen_version=seen), results=tmp_path)
    assert not line["matches"]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    "flags",
    [
        {"algorithm": {"probes": 4}},
        {"algorithm": {"kind": "open-es", "population_size": 6}},
        {"algorithm": {"step_size": 1e25}, "loss": "squared"},
        {"redraw_every": 3},
        {
            "algorithm": {"kind": "open-es", "population_size": 6, "rank": 1},
            "precision": "bfloat16",
        },
        {"mode": "async", "staleness": 1},
    ],
    ids=["probes", "open-es", "diverged", "redrawn", "bfloat16", "bounded"],
)
def test_replay__matches(mode, flags, tiny, tmp_path) -> None:
    config = tiny(**({"mode": mode, "delays": {0: 0.05}} | flags))
    ds = train(config, results=tmp_path)
    line = replay(ds.attrs["run_id"], results=tmp_path)
    assert line["matches"]
    assert line["losses_match"]


def test_replay__of_back_propagation_and_of_a_trained_start(tiny, tmp_path) -> None:
    first = train(tiny(algorithm={"kind": "sgd"}), results=tmp_path)
    assert replay(first.attrs["run_id"], results=tmp_path)["matches"]
    second = train(tiny(init=first.attrs["run_id"]), results=tmp_path)
    assert replay(second.attrs["run_id"], results=tmp_path)["matches"]


def test_replay__on_other_data_is_refused(sync_run, tmp_path) -> None:
    from pipeline.store import ingest

    ds, _ = sync_run
    other = ingest("digits", store=tmp_path / "digits.zarr", limit_train=900).path
    copy = open_run(ds.attrs["store"])
    copy.attrs |= {"data_store": str(other), "data_store_absolute": str(other)}
    config = json.loads(copy.attrs["config"]) | {"dataset": str(other)}
    copy.attrs["config"] = json.dumps(config)
    path = write_run(copy, tmp_path / "default" / "copy.zarr")
    with pytest.raises(ValueError, match=r"the one that .* was trained on"):
        replay(path, results=tmp_path)
