"""What is damaged: small data stores, runs and checkpoints, made once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import RunConfig, load_config
from pipeline.runs import checkpoint_path, store_path
from pipeline.store import ingest
from pipeline.train import train

BLOCKS: dict[str, Any] = {"model": {"hidden": [3]}, "blocks": "by_unit:3"}
REPLICAS: dict[str, Any] = {
    "model": {"name": "resnet8", "options": {"norm": "batch"}},
    "algorithm": {"kind": "nosync", "exchange_every": 1},
    "mode": "async",
    "nodes": 2,
}


@dataclass(frozen=True)
class Target:
    """Something to damage: a store (a folder) or a checkpoint (a file)."""

    kind: str  # data, run or checkpoint
    path: str  # of the whole one
    other: str  # another one of its kind
    data: str  # the data store that belongs to it
    effort: int = 2  # how many values, and how many bits, are tried in one place


def make(folder: Path) -> dict[str, Target]:
    """Write the samples into ``folder``; return what there is to damage."""
    data, other = (data_store(folder, f"d{seed}", seed) for seed in (0, 1))
    targets = {"data": Target("data", str(data), str(other), str(data))}
    for name, flags in (("blocks", BLOCKS), ("replicas", REPLICAS)):
        runs, checkpoints = [], []
        for seed in (0, 1):
            config = config_of(data, seed, flags)
            ds = train(config, results=folder / name)
            runs.append(store_path(folder / name / "default", ds.attrs["run_id"]))
            checkpoints.append(_interrupted(config, folder / f"{name}-stopped"))
        effort = 2 if name == "blocks" else 1  # of a hundred files, all alike
        run, checkpoint = f"run of {name}", f"checkpoint of {name}"
        targets[run] = Target("run", *map(str, (*runs, data)), effort)
        targets[checkpoint] = Target("checkpoint", *map(str, (*checkpoints, data)))
    return targets


def run_and_checkpoint(data: Path, results: Path) -> None:
    """Write a run, and the checkpoint of another one, into one folder of results."""
    train(config_of(data, 0, BLOCKS), results=results)
    stopped = _interrupted(config_of(data, 1, BLOCKS), results)
    assert stopped.is_file()


def data_store(folder: Path, name: str, seed: int) -> Path:
    """Write ``name``.npz with small random images, and ingest it."""
    rng = np.random.default_rng(seed)
    arrays = {
        f"{axis}_{split}": values
        for split, n in (("train", 40), ("test", 20))
        for axis, values in (
            ("x", rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)),
            ("y", np.arange(n) % 3),
        )
    }
    folder.mkdir(exist_ok=True)
    source = folder / f"{name}.npz"
    np.savez(source, **arrays)
    return ingest("npz", source=source, store=folder / f"{name}.zarr").path


def config_of(data: Path, seed: int, flags: dict[str, Any]) -> RunConfig:
    """Return the settings of a run of six steps in this process."""
    base = {
        "dataset": str(data),
        "seed": seed,
        "budget": {"steps": 6},
        "eval_every": 2,
        "n_shards": 2,
        "cluster": {"kind": "in-process", "workers": 2},
    }
    return load_config(None, [], base | flags)


def _interrupted(config: RunConfig, results: Path) -> Path:
    stop = threading.Event()
    stop.set()  # at the end of the first piece
    ds = train(config, results=results, stop=stop)
    assert ds.attrs["status"] == "interrupted"
    return checkpoint_path(results / "default", ds.attrs["run_id"])
