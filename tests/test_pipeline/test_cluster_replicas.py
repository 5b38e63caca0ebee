"""Replica methods on a real cluster: as in one process, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from blocks import ALGORITHMS
from blocks.algorithm import Information
from pipeline.replay import replay
from pipeline.run_store import write_run
from pipeline.train import resume, train

pytestmark = pytest.mark.cluster

TALKING = [
    kind
    for kind, algorithm in ALGORITHMS.items()
    if not algorithm.blockwise
    and "sync" in algorithm.modes
    and algorithm.information & Information.NEIGHBOURS
]
SETTINGS: dict[str, dict[str, Any]] = {  # so that 12 rounds show what a method does
    "local-sgd": {"exchange_every": 3},
    "nosync": {"exchange_every": 3},
    "pso-ps": {"exchange_every": 3},
    "node-based": {"exchange_every": 4},
    "selsync": {"warm_up": 2, "threshold": 0.05},
    "dbs": {"adapt_every": 4, "speeds": (1.0, 2.0, 1.0, 4.0)},
}
FREE = {"budget": {"steps": 20}, "mode": "async", "nodes": 3, "eval_every": 20}
SLOW = {"delays": {1: 0.03}, "checkpoint_every_s": 0.2}


def flags_of(kind: str, **more: Any) -> dict[str, Any]:
    """Settings of a short run of a replica method."""
    algorithm = {"kind": kind} | SETTINGS.get(kind, {})
    base = {"blocks": None, "budget": {"steps": 12}, "eval_every": 6}
    return {"algorithm": algorithm} | base | more


def replays(ds: xr.Dataset, tmp_path: Any) -> bool:
    """Whether a copy of the run without its parameters gives them back."""
    copy = ds.copy(deep=True)
    for name in ("params", "best_params"):
        copy[name].values[...] = 0.0
    copy.attrs.pop("store")
    return bool(replay(write_run(copy, tmp_path / "copy" / "run.zarr"))["matches"])


def pairs(ds: xr.Dataset) -> list[tuple[int, int]]:
    """(node, step) of each update, in order."""
    return list(
        zip(ds.update_node.values.tolist(), ds.update_step.values.tolist(), strict=True)
    )


def step_of(key: str) -> int:
    """First step of a job, from its key."""
    return int(key.split("-")[2].removeprefix("s"))


@pytest.fixture
def kill_task(small_cluster):
    """Return the function that kills the worker process of a task while it runs.

    It is told, kill by kill, which task's key will do; the list that it returns holds
    the keys of the tasks that were killed.
    """
    over = threading.Event()
    threads: list[threading.Thread] = []

    def start(*wanted: Callable[[str], bool]) -> list[str]:
        killed: list[str] = []

        def watch() -> None:
            for fits in wanted:
                while not over.wait(0.003):
                    tasks = list(small_cluster.scheduler.tasks.values())
                    found = [
                        (str(task.key), task.processing_on.address)
                        for task in tasks
                        if task.processing_on is not None
                        and str(task.key).startswith("update-")
                        and fits(str(task.key))
                    ]
                    pids = {
                        nanny.worker_address: nanny.process.pid
                        for nanny in list(small_cluster.workers.values())
                        if nanny.process is not None
                    }
                    if found and found[0][1] in pids:
                        over.wait(0.02)  # into the work, not at its door
                        os.kill(pids[found[0][1]], signal.SIGKILL)
                        killed.append(found[0][0])
                        break

        threads.append(threading.Thread(target=watch))
        threads[-1].start()
        return killed

    yield start
    over.set()
    for thread in threads:
        thread.join(30)


# -- synchronous ----------------------------------------------------------------------


def test_talking__is_every_synchronous_method_whose_replicas_talk() -> None:
    assert {"local-sgd", "all-reduce-sgd", "next", "nosync", "pso-ps"} <= set(TALKING)


@pytest.mark.parametrize("kind", TALKING)
def test_sync__has_the_hash_of_one_process_on_2_workers(
    kind, tiny, shared, tmp_path
) -> None:
    here = train(tiny(**flags_of(kind)), results=tmp_path / "here")
    config = tiny(**flags_of(kind, cluster=shared))
    there = train(config, results=tmp_path / "there")
    assert there.attrs["n_workers"] == 2
    for name in ("run_id", "params_sha256", "n_samples", "bytes_moved"):
        assert there.attrs[name] == here.attrs[name]
    for name in ("test_accuracy", "train_loss", "best_params", "bytes_moved"):
        np.testing.assert_array_equal(there[name], here[name])
    assert here.attrs["bytes_moved"] > 0
    workers = [set(there.worker.values[there.update_node == n]) for n in range(4)]
    assert workers[0] == workers[1] != workers[2] == workers[3]
    assert replays(there, tmp_path)


def test_sync__skew_latency_and_delays_leave_one_result(tiny, shared, tmp_path) -> None:
    flags = flags_of("local-sgd", skew=1.0, nodes=3, machines=2)
    here = train(tiny(**flags), results=tmp_path / "here")
    slow = {"latency_s": 0.01, "delays": {2: 0.005}, "cluster": shared}
    there = train(tiny(**flags | slow), results=tmp_path / "there")
    assert there.attrs["run_id"] == here.attrs["run_id"]
    assert there.attrs["params_sha256"] == here.attrs["params_sha256"]
    even = train(tiny(**flags | {"skew": 0.0}), results=tmp_path / "even")
    assert even.attrs["params_sha256"] != here.attrs["params_sha256"]


def test_sync__batch_norm_replicas_agree_with_one_process(
    tiny, shared, tmp_path
) -> None:
    flags = flags_of("local-sgd", budget={"steps": 5}, eval_every=5, nodes=2)
    flags |= {"model": {"name": "resnet8", "options": {"norm": "batch"}}}
    flags["algorithm"] |= {"batch_size": 4}
    here = train(tiny(**flags), results=tmp_path / "here")
    there = train(tiny(**flags, cluster=shared), results=tmp_path / "there")
    assert there.attrs["params_sha256"] == here.attrs["params_sha256"]
    np.testing.assert_array_equal(there.buffers, here.buffers)
    np.testing.assert_array_equal(there.test_loss, here.test_loss)


def test_sync__stopped_here_it_is_resumed_there(tiny, shared, tmp_path) -> None:
    flags = flags_of("selsync", budget={"steps": 24}, eval_every=4)
    whole = train(tiny(**flags), results=tmp_path / "whole")
    stop = threading.Event()

    def watch(progress: Any) -> None:
        if progress.phase == "training" and progress.round >= 8:
            stop.set()

    cut = tmp_path / "cut"
    ds = train(tiny(**flags), results=cut, progress=watch, stop=stop)
    assert ds.attrs["status"] == "interrupted"
    ds = resume(ds.attrs["run_id"], results=cut, cluster=shared)
    assert ds.attrs["status"] == "complete"
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]
    assert ds.attrs["bytes_moved"] == whole.attrs["bytes_moved"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local-sgd", "all-reduce-sgd"])
def test_sync__a_killed_worker_process_changes_no_bit(
    kind, tiny, shared, kill_task, tmp_path
) -> None:
    flags = flags_of(kind, budget={"steps": 60}, eval_every=20)
    whole = train(tiny(**flags), results=tmp_path / "whole")
    killed = kill_task(lambda key: "-r4-r19-" in key, lambda key: "-r40-r59-" in key)
    config = tiny(**flags, delays={1: 0.01}, cluster=shared)
    ds = train(config, results=tmp_path / "killed")
    assert len(killed) == 2
    assert ds.attrs["n_reruns"] >= 1
    for name in ("params_sha256", "bytes_moved", "n_samples"):
        assert ds.attrs[name] == whole.attrs[name]
    assert ds.sizes["update"] == whole.sizes["update"] == 240
    assert sorted(pairs(ds)) == sorted(pairs(whole))


# -- asynchronous ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm",
    [
        {"kind": "nosync", "exchange_every": 2},
        {"kind": "nosync", "exchange_every": 2, "attractor": "best"},
        {"kind": "async-sgd", "momentum": 0.5},
        {"kind": "async-sgd", "assignment": "random"},
        {"kind": "async-sgd", "assignment": "shuffled"},
        {"kind": "layerwise-async-sgd"},
    ],
    ids=["nosync", "nosync-best", "async-sgd", "random", "shuffled", "layerwise"],
)
def test_async__replays_bit_for_bit(algorithm, tiny, shared, tmp_path) -> None:
    config = tiny(**FREE, algorithm=algorithm, delays={1: 0.005}, cluster=shared)
    ds = train(config, results=tmp_path)
    assert ds.attrs["status"] == "complete"
    assert ds.attrs["stop_reason"] == "budget: steps"
    taken = pairs(ds)
    assert len(taken) == len(set(taken)) == 60
    for node in range(3):
        own = [step for n, step in taken if n == node]
        assert own == list(range(1, len(own) + 1))
    assert ds.attrs["bytes_moved"] > 0
    assert replays(ds, tmp_path)


def test_async__a_straggler_takes_fewer_steps_of_a_served_method(
    tiny, shared, tmp_path
) -> None:
    config = tiny(
        **FREE,
        **{"algorithm": {"kind": "async-sgd"}, "cluster": shared},
        **{"delays": {1: 0.05}, "own_worker": [1]},
    )
    ds = train(config, results=tmp_path)
    n_steps = np.bincount(ds.update_node.values, minlength=3)
    assert n_steps.sum() == 60
    assert n_steps[1] < n_steps[[0, 2]].min()
    age = np.arange(60) - ds.seen_version.values
    assert (age >= 0).all()
    assert age[ds.update_node == 1].mean() > age[ds.update_node != 1].mean()
    workers = [set(ds.worker.values[ds.update_node == n]) for n in range(3)]
    assert len(workers[1]) == 1
    assert not workers[1] & (workers[0] | workers[2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nosync", "async-sgd"])
def test_async__killed_worker_processes_leave_a_run_that_replays(
    kind, tiny, shared, kill_task, tmp_path
) -> None:
    config = tiny(
        **FREE | {"budget": {"steps": 60}},
        **{"algorithm": {"kind": kind}, "delays": {1: 0.03}, "cluster": shared},
    )
    killed = kill_task(
        lambda key: key.startswith("update-n1-") and step_of(key) >= 8,
        lambda key: key.startswith("update-n1-") and step_of(key) >= 16,
    )
    ds = train(config, results=tmp_path)
    assert len(killed) == 2
    assert ds.attrs["status"] == "complete"
    assert ds.attrs["n_reruns"] >= 1
    taken = pairs(ds)
    assert len(taken) == len(set(taken)) == 180
    if kind == "nosync":
        assert sorted(taken) == [(n, k) for n in range(3) for k in range(1, 61)]
    assert replays(ds, tmp_path)


@pytest.mark.parametrize("kind", ["nosync", "async-sgd"])
def test_async__stopped_and_resumed_replays(kind, tiny, shared, tmp_path) -> None:
    stop = threading.Event()

    def watch(progress: Any) -> None:
        if progress.phase == "training" and progress.round >= 3:
            stop.set()

    config = tiny(
        **FREE | {"budget": {"steps": 30}} | SLOW,
        **{"algorithm": {"kind": kind}, "cluster": shared},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.asynchronous.TELL_S", 0.0)
        cut = train(config, results=tmp_path, progress=watch, stop=stop)
    assert cut.attrs["status"] == "interrupted"
    assert 0 < cut.sizes["update"] < 90
    ds = resume(cut.attrs["run_id"], results=tmp_path)
    assert ds.attrs["status"] == "complete"
    before = cut.sizes["update"]
    assert pairs(ds)[:before] == pairs(cut)
    assert len(set(pairs(ds))) == ds.sizes["update"] == 90
    assert not list(tmp_path.rglob("*.npz"))
    assert replays(ds, tmp_path)


def test_async__another_order_of_updates_gives_other_parameters(
    tiny, shared, tmp_path
) -> None:
    """The replay reads the order from the record, so the record must matter."""
    config = tiny(**FREE, algorithm={"kind": "async-sgd"}, cluster=shared)
    ds = train(config, results=tmp_path)
    changed = ds.copy(deep=True)
    seen = changed.seen_version.values
    last = int(np.flatnonzero(seen > 0)[-1])
    seen[last] -= 1
    assert not replays(changed, tmp_path)


@pytest.mark.slow
def test_evaluation__outlives_the_death_of_all_workers(
    tiny, shared, small_cluster, context_for
) -> None:
    from pipeline.cluster import open_cluster
    from pipeline.remote import RemoteEvaluation

    context = context_for(tiny(**flags_of("local-sgd", cluster=shared)))
    spec, theta = context.spec, context.initial
    with open_cluster(spec.config.cluster, "cpu") as cluster:
        evaluation = RemoteEvaluation(cluster, spec, theta, None, ("test",))
        for nanny in list(small_cluster.workers.values()):
            os.kill(nanny.process.pid, signal.SIGKILL)
        sums, _ = evaluation.result()
    expected = context.evaluate(theta, None, "test", range(spec.config.n_shards))
    np.testing.assert_array_equal(sums["test"], expected)
