"""Fixtures: run stores that follow the schema, without any training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipeline.schema import check_schema, variable

SPEED = {("sgd", "sync"): 3.0, ("nd-cao", "async"): 1.4, ("nd-cao", "sync"): 1.0}


def make_run(
    algorithm: str = "nd-cao",
    mode: str = "sync",
    seed: int = 0,
    *,
    n_evals: int = 12,
    n_nodes: int = 3,
    n_params: int = 20,
    attrs: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Return one run: smooth learning curves, staleness 0 in sync and 1 in async."""
    rng = np.random.default_rng([seed, len(algorithm), len(mode)])
    n_rounds = 10 * (n_evals - 1)
    step = 10 * np.arange(n_evals)
    rate = SPEED.get((algorithm, mode), 0.7)
    progress = 1.0 - np.exp(
        -rate * (1 + 0.1 * rng.random()) * step / max(n_rounds, 1) * 2.5
    )
    wall = np.cumsum(np.r_[0.0, 0.5 + 0.2 * rng.random(n_evals - 1)]) / rate
    gradient = algorithm == "sgd"
    accuracy = 0.1 + 0.8 * progress + 0.01 * rng.standard_normal(n_evals)
    loss = 2.3 - 1.9 * progress + 0.02 * rng.standard_normal(n_evals)
    none = np.zeros(n_evals)
    seen = np.repeat(np.arange(n_rounds), n_nodes)
    lag = 1 if mode == "async" else 0
    start = np.linspace(0, wall[-1], n_rounds)
    data = {
        "step": step,
        "version": step,
        "wall_time_s": wall,
        "n_loss_evals": none if gradient else step,
        "n_samples": step * 2000,
        "n_gradient_evals": step * 2000 if gradient else none,
        "bytes_moved": step * 4 * n_params,
        "train_loss": loss,
        "val_loss": loss + 0.02,
        "val_accuracy": accuracy,
        "test_loss": loss + 0.03,
        "test_accuracy": accuracy,
        "update_node": np.tile(np.arange(n_nodes), n_rounds),
        "update_step": seen + 1,
        "seen_version": seen,
        "scored_version": np.where(seen + 1 + lag < n_rounds, seen + 1 + lag, -1),
        "start_s": np.repeat(start, n_nodes),
        "end_s": np.repeat(start, n_nodes) + 0.01,
        "worker": np.tile(np.arange(n_nodes) % 2, n_rounds),
        "score_version": np.arange(n_rounds),
        "score_loss": np.linspace(2.3, loss[-1], n_rounds),
        "score_start_s": start,
        "score_end_s": start + 0.01,
        "score_subset": np.zeros(n_rounds),
        "score_losses": np.linspace(2.3, loss[-1], n_rounds)[:, None],
        "score_steps": np.repeat(np.arange(n_rounds)[:, None], n_nodes, axis=1),
        "params": rng.standard_normal(n_params),
        "best_params": rng.standard_normal(n_params),
    }
    settings = {
        "dataset": "digits",
        "mode": mode,
        "seed": seed,
        "blocks": "by_unit:9",
        "model": {"name": "mlp", "hidden": [32]},
        "algorithm": {"kind": algorithm, **({} if gradient else {"window": 100})},
        "budget": {"steps": n_rounds},
        "cluster": {"kind": "local", "workers": 2},
    }
    final = {
        name: data[name][-1] for name in ("n_loss_evals", "n_samples", "bytes_moved")
    }
    ds = xr.Dataset(
        {name: variable(name, values) for name, values in data.items()},
        attrs={
            "run_id": f"{algorithm}-{mode}-digits-s{seed}-abc123",
            "algorithm": algorithm,
            "mode": mode,
            "dataset": "digits",
            "model": "mlp",
            "partition": "by_unit:9",
            "seed": seed,
            "config": json.dumps(settings | (config or {})),
            "status": "complete",
            "stop_reason": "budget",
            "test_accuracy": float(accuracy[-1]),
            "train_loss": float(loss[-1]),
            **{name: int(value) for name, value in final.items()},
            "n_gradient_evals": int(data["n_gradient_evals"][-1]),
            "wall_time_s": float(wall[-1]),
            "eval_time_s": 0.4,
            "total_time_s": float(wall[-1]) + 3.0,
            "n_reruns": 0,
            "n_workers": 2,
            "worker_names": ["0", "1"],
            "params_sha256": _sha256([algorithm, mode, seed, attrs, config]),
            "git_commit": "c0ffee0123456789",
            "git_dirty": False,
            "versions": json.dumps({"python": "3.11.9", "torch": "2.9.0"}),
            "hardware": json.dumps({"processor": "x86_64", "cores": 2}),
            "layout": json.dumps([["weight", [n_params]]]),
            **(attrs or {}),
        },
    )
    check_schema(ds)
    return ds


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def store_run(ds: xr.Dataset, folder: Path, *, complete: bool = True) -> Path:
    """Write the run as a store of its own, with or without the completion marker."""
    from pipeline.run_store import write_run

    path = folder / f"{ds.attrs['run_id']}.zarr"
    if complete:
        return write_run(ds, path)
    ds.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def store_demo_runs(folder: Path, n_seeds: int = 2) -> list[Path]:
    """Write ND-CAO in both modes and SGD, each with ``n_seeds`` seeds."""
    methods = (("nd-cao", "sync"), ("nd-cao", "async"), ("sgd", "sync"))
    return [
        store_run(make_run(algorithm, mode, seed), folder)
        for algorithm, mode in methods
        for seed in range(n_seeds)
    ]


@pytest.fixture(scope="session")
def synthetic_run():
    """Return the function that makes one run's dataset."""
    return make_run


@pytest.fixture(scope="session")
def write_run():
    """Return the function that writes a run as a store."""
    return store_run


@pytest.fixture(scope="session")
def write_demo_runs():
    """Return the function that writes three methods with some seeds each."""
    return store_demo_runs


# -- real runs, tiny ------------------------------------------------------------------


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Return the store of scikit-learn's digits, ingested once."""
    from pipeline.store import ingest

    return ingest("digits", store=tmp_path_factory.mktemp("data") / "digits.zarr").path


@pytest.fixture(scope="session")
def tiny(digits):
    """Return the function that makes a small configuration: ``tiny(mode="async")``."""
    from pipeline.config import RunConfig, load_config

    def make(**flags: Any) -> RunConfig:
        flags.setdefault("cluster", {"kind": "in-process", "workers": 2})
        base = {
            "dataset": str(digits),
            "model": {"hidden": [6]},
            "blocks": "by_unit:3",
            "loss_samples": 200,
            "budget": {"steps": 8},
        }
        return load_config(None, [], base | flags)

    return make


@pytest.fixture(scope="session")
def context_for():
    """Return the function that builds a configuration's context in this process."""
    from pipeline.batches import ResidentData
    from pipeline.context import Context, RunSpec
    from pipeline.data_store import open_store
    from pipeline.harness import planned_rounds, round_costs
    from pipeline.resolve import resolve

    def make(config: Any, run_id: str = "run") -> Context:
        store = open_store(Path(config.dataset))
        config = resolve(config, store)
        costs = round_costs(config, ResidentData.count(store, config), store.n_train)
        n_steps = planned_rounds(config.budget, costs)
        spec = RunSpec(run_id, config, str(store.path), store.content_sha256, n_steps)
        return Context(spec, store)

    return make


@pytest.fixture(scope="session")
def sync_run(tiny, tmp_path_factory) -> tuple[xr.Dataset, Path]:
    """Return one stored synchronous ND-CAO run and its results folder."""
    from pipeline.train import train

    results = tmp_path_factory.mktemp("sync")
    return train(tiny(), results=results), results


@pytest.fixture(scope="session")
def async_run(tiny, tmp_path_factory) -> tuple[xr.Dataset, Path]:
    """Return one stored asynchronous run with a delayed block, on the virtual clock."""
    from pipeline.train import train

    results = tmp_path_factory.mktemp("async")
    config = tiny(mode="async", budget={"steps": 20}, delays={1: 0.06})
    return train(config, results=results), results


@pytest.fixture(scope="session")
def small_cluster():
    """Return a cluster of two worker processes that tests share."""
    import dask
    from distributed import LocalCluster

    from pipeline.cluster import SETTINGS

    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def shared(small_cluster):
    """Return the shared cluster's settings, once both of its workers are there."""
    from distributed import Client

    with Client(small_cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=90)
    yield {"kind": "address", "address": small_cluster.scheduler_address, "workers": 2}
    assert board_values(small_cluster) == {}, "a run left its Variable behind"


def board_values(cluster: Any) -> dict[str, Any]:
    """Return what the cluster's Variables hold now, by name."""
    held = dict(cluster.scheduler.extensions["variables"].variables)
    assert all(one["type"] == "msgpack" for one in held.values())  # plain numbers
    return {name: one["value"] for name, one in held.items()}


@pytest.fixture
def kill_at(small_cluster):
    """Return the function that kills a worker process whenever a version is reached.

    One worker, or ``every`` one at once. The killings happen in a thread that watches
    the run's Variable, so while updates run; the list it returns holds the versions at
    which one was killed.
    """
    over = threading.Event()
    threads: list[threading.Thread] = []

    def start(*versions: int, every: bool = False) -> list[int]:
        killed: list[int] = []

        def watch() -> None:
            for number, version in enumerate(versions):
                while not over.wait(0.005):
                    seen = [v["version"] for v in board_values(small_cluster).values()]
                    nannies = list(small_cluster.workers.values())
                    chosen = nannies if every else [nannies[number % 2]]
                    pids = [n.process and n.process.pid for n in chosen]
                    ready = all(pids)  # no process while it starts again
                    if ready and seen and max(seen) >= version:
                        with contextlib.suppress(ProcessLookupError):
                            for pid in pids:
                                os.kill(pid, signal.SIGKILL)
                            killed.append(max(seen))
                            break

        threads.append(threading.Thread(target=watch))
        threads[-1].start()
        return killed

    yield start
    over.set()
    for thread in threads:
        thread.join(30)


@pytest.fixture(scope="session")
def drive():
    """Return the function that runs a coordinator over a virtual executor."""
    from pipeline.coordinator import Coordinator, Limits
    from pipeline.updates import point_of
    from pipeline.virtual import VirtualExecutor

    def run(
        context: Any,
        bound: int | None = None,
        steps: int = 10,
        wrap: Any = None,
        n_workers: int = 2,
        max_polls: int = 20_000,
    ) -> Coordinator:
        executor = VirtualExecutor(context, n_workers=n_workers)
        executor = executor if wrap is None else wrap(executor)
        points = {n: point_of(context.init_node(n)[1]) for n in range(context.n_nodes)}
        coordinator = Coordinator(
            *(executor, points, bound, Limits(steps)),
            *(context.subset, context.data.n_loss),
        )
        for _ in range(max_polls):
            coordinator.fill()
            if coordinator.idle:
                return coordinator
            for done in executor.poll(0.0):
                coordinator.accept(done)
        raise AssertionError("the coordinator waits for an answer that never comes")

    return run


@pytest.fixture(scope="session")
def replays():
    """Return the function that says whether a coordinator's record gives its points."""
    from pipeline.journal import Journal
    from pipeline.replay import recompute_scored

    def check(context: Any, coordinator: Any) -> bool:
        journal = Journal()
        journal.add(coordinator.outcome)
        updates = np.array(journal.updates, dtype=float)
        records = [record for record, _, _ in journal.scores]
        ds = {
            "update_node": variable("update_node", updates[:, 0]),
            "update_step": variable("update_step", updates[:, 1] + 1),
            "seen_version": variable("seen_version", updates[:, 2]),
            "score_version": variable("score_version", [r.version for r in records]),
            "score_steps": variable("score_steps", [r.steps for r in records]),
            "score_subset": variable("score_subset", [r.subset for r in records]),
            "score_losses": variable("score_losses", [r.losses for r in records]),
        }
        messages, losses_match = recompute_scored(context, ds)
        return losses_match and all(
            np.array_equal(
                messages[n].solution.numpy(), point if answer is None else answer
            )
            for n, (point, answer, _) in coordinator.points.items()
        )

    return check
