"""Asynchronous runs on a real cluster: stale, out of order, and yet replayable."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.replay import replay
from pipeline.run_store import write_run
from pipeline.train import resume, train

pytestmark = pytest.mark.cluster


def replays(ds, tmp_path) -> bool:
    """Whether a copy of the run without its parameters gives them back."""
    copy = ds.copy(deep=True)
    for name in ("params", "best_params"):
        copy[name].values[...] = 0.0
    line = replay(write_run(copy, tmp_path / "copy" / "run.zarr"))
    return line["matches"] and line["losses_match"]


def staleness(ds) -> np.ndarray:
    lag = ds.scored_version.values - ds.seen_version.values - 1
    return lag[ds.scored_version.values >= 0]


def test_async__with_a_delayed_block_is_stale_and_replays_from_its_record(
    tiny, shared, tmp_path
) -> None:
    config = tiny(
        **{
            "mode": "async",
            "eval_every": 20,
            "budget": {"steps": 40},
            "delays": {1: 0.05},
        },
        **{"own_worker": [1], "cluster": shared},
    )
    ds = train(config, results=tmp_path)
    assert ds.attrs["stop_reason"] == "budget: steps"
    assert staleness(ds).mean() > 0
    by_end = ds.update_step.values[np.argsort(ds.end_s.values, kind="stable")]
    assert (np.diff(by_end) < 0).any()
    assert (np.ptp(ds.score_steps.values, axis=1) > 0).any()
    assert (np.diff(ds.score_version) == 1).all()
    pairs = zip(ds.update_node.values, ds.update_step.values, strict=True)
    assert sorted(pairs) == [(n, k) for n in range(3) for k in range(1, 41)]
    assert replays(ds, tmp_path)


@pytest.mark.slow
def test_async__killed_worker_processes_leave_a_run_that_replays(
    tiny, shared, kill_at, tmp_path
) -> None:
    config = tiny(
        **{"mode": "async", "eval_every": 40, "budget": {"steps": 80}},
        **{"delays": {1: 0.02}, "cluster": shared},
    )
    killed = kill_at(10, 40)
    ds = train(config, results=tmp_path)
    assert killed
    assert ds.attrs["n_reruns"] >= 1
    pairs = zip(ds.update_node.values, ds.update_step.values, strict=True)
    assert sorted(pairs) == [(n, k) for n in range(3) for k in range(1, 81)]
    assert replays(ds, tmp_path)


@pytest.mark.slow
def test_async__outlives_the_death_of_all_workers_at_once(
    tiny, shared, kill_at, tmp_path
) -> None:
    flags = {"mode": "async", "eval_every": 20, "budget": {"steps": 60}}
    killed = kill_at(15, every=True)
    ds = train(tiny(**flags, cluster=shared), results=tmp_path)
    assert killed
    assert ds.attrs["status"] == "complete"
    assert ds.attrs["n_reruns"] >= 1
    assert replays(ds, tmp_path)


def test_async__own_worker_gives_a_block_a_worker_of_its_own(
    tiny, shared, tmp_path
) -> None:
    config = tiny(
        **{
            "mode": "async",
            "eval_every": 20,
            "budget": {"steps": 30},
            "delays": {0: 0.02},
        },
        **{"own_worker": [0], "cluster": shared},
    )
    ds = train(config, results=tmp_path)
    workers = [set(ds.worker.values[ds.update_node.values == n]) for n in range(3)]
    assert len(workers[0]) == 1
    assert workers[1] == workers[2]
    assert not workers[0] & workers[1]


@pytest.mark.parametrize(
    "flags",
    [
        {"staleness": 2},
        {"algorithm": {"probes": 4}},
        {"algorithm": {"kind": "open-es", "population_size": 6}},
        {"budget": {"loss_values": 20}},
        {"loss": "squared", "algorithm": {"step_size": 1e25}},
    ],
    ids=["bounded", "probes", "open-es", "loss-values", "diverged"],
)
def test_async__replays(flags, tiny, shared, tmp_path) -> None:
    config = tiny(
        **({"mode": "async", "eval_every": 20, "budget": {"steps": 20}} | flags),
        cluster=shared,
    )
    ds = train(config, results=tmp_path)
    assert ds.attrs["status"] == ("diverged" if "loss" in flags else "complete")
    assert replays(ds, tmp_path)


def test_async__stopped_and_resumed_replays(tiny, shared, tmp_path) -> None:
    import threading

    stop = threading.Event()

    def watch(progress) -> None:
        if progress.version >= 5:
            stop.set()

    config = tiny(
        **{
            "mode": "async",
            "eval_every": 20,
            "budget": {"steps": 60},
            "delays": {1: 0.01},
        },
        **{"checkpoint_every_s": 0.2, "cluster": shared},
    )
    ds = train(config, results=tmp_path, progress=watch, stop=stop)
    assert ds.attrs["status"] == "interrupted"
    ds = resume(ds.attrs["run_id"], results=tmp_path)
    assert ds.attrs["status"] == "complete"
    assert ds.sizes["update"] == 180
    assert replays(ds, tmp_path)
