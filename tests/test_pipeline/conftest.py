"""Fixtures: run stores that follow the schema, without any training."""

from __future__ import annotations

import json
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
            "params_sha256": "0" * 64,
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


def store_run(ds: xr.Dataset, folder: Path, *, complete: bool = True) -> Path:
    """Write the run as a store of its own, with or without the completion marker."""
    path = folder / f"{ds.attrs['run_id']}.zarr"
    marked = ds.assign_attrs(complete=True, content_sha256="0" * 64) if complete else ds
    marked.to_zarr(path, zarr_format=3, consolidated=False)
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
