"""Samples/s of pipelined activity perturbation ÷ those of its replica form.

Four layers of 1,024 units as four blocks on two workers, random images of 32 × 32;
waves of 1,024 samples and more. Both forms run in turn on one local cluster each, with
the same configuration, and must end with the same parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from _command import TYPED

GOAL = 0.8
BLOCKS = [
    r"fc1\..*",
    r"fc2\..*",
    r"fc3\..*",
    r"(fc4|out)\..*",
]  # the last with the outputs


def main() -> None:
    """Measure the ratio and end with its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of a run")
    parser.add_argument("--waves", type=int, default=8, help="waves of a round")
    parser.add_argument("--wave", type=int, default=1024, help="samples of a wave")
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory(prefix="ndcao-pipelined-") as name:
        folder = Path(name)
        store = make_store(folder, options.waves * options.wave)
        for _ in range(options.repeats):
            runs = [measure(store, folder, options, form) for form in (False, True)]
            (replicas, first), (pipelined, second) = runs
            print(f"replicas {replicas:,.0f} samples/s, pipelined {pipelined:,.0f}")
            if first != second:
                raise RuntimeError(
                    "`params` of the two forms must be equal; they differ."
                )
            pairs.append(pipelined / replicas)
    value = statistics.median(pairs)
    line = {
        "name": "pipelined.samples_over_replicas",
        "value": round(value, 3),
        "goal": GOAL,
        "ok": value >= GOAL,
        "command": TYPED,
        "spread": [round(min(pairs), 3), round(max(pairs), 3)],
    }
    print(json.dumps(line))


def make_store(folder: Path, n: int) -> Path:
    """Ingest random images, enough for one round and a validation part."""
    from pipeline.store import ingest

    rng = np.random.default_rng(0)
    total = n * 10 // 9 + 20
    raw = folder / "random.npz"
    np.savez(
        raw,
        x_train=rng.integers(0, 256, (total, 32, 32), dtype=np.uint8),
        y_train=np.arange(total) % 10,
        x_test=rng.integers(0, 256, (100, 32, 32), dtype=np.uint8),
        y_test=np.arange(100) % 10,
    )
    return ingest("npz", source=raw, store=folder / "random.zarr").path


def measure(
    store: Path, folder: Path, options: argparse.Namespace, pipelined: bool
) -> tuple[float, str]:
    """Samples/s of a run, evaluations not counted, and its parameters' hash."""
    from pipeline.config import validate_config
    from pipeline.train import train

    config = validate_config(
        {
            "dataset": str(store),
            "model": {"name": "mlp", "hidden": [1024] * 4},
            "algorithm": {"kind": "activity-perturbation", "step_size": 1e-3},
            "custom_blocks": BLOCKS,
            "loss_samples": options.waves * options.wave,
            "n_shards": options.waves,
            "redraw_every": 0,
            "budget": {"steps": options.rounds},
            "eval_every": options.rounds,
            "pipelined": pipelined,
            "cluster": {"kind": "local", "workers": 2, "dashboard": False},
        }
    )
    ds = train(config, results=folder / "results", again=True)
    # The first round also loads what later ones find in memory.
    ends = ds.end_s.groupby(ds.update_step).max()
    seconds = float(ends[-1] - ends[0])
    samples = (options.rounds - 1) * options.waves * options.wave
    return samples / seconds, ds.attrs["params_sha256"]


if __name__ == "__main__":
    main()
