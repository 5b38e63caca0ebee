"""Loss values/s of a synchronous Dask run ÷ the same mathematics in one plain loop.

The loop runs in a process of its own, with no cluster alive, with 1 and with 2 torch
threads, and the faster one counts. Data are random images; the network is an MLP
784-32-10, or 784-256-10 for the longer score. The third figure is rounds/s of a run
whose score is one sample in one share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _command import TYPED

N_TRAIN = 54_000  # of the 60,000 random images that are ingested


def main() -> None:
    """Measure the three figures and end with their JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs a figure")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory(prefix="ndcao-overhead-") as name:
        folder = Path(name)
        store = make_store(folder)
        for target_s, goal, hidden in ((0.200, 0.85, 256), (0.020, 0.50, 32)):
            per_sample = single_thread_cost(store, hidden)
            print(f"{hidden} units: {per_sample * 1e6:.2f} µs of one core a sample")
            n = min(int(2 * target_s / per_sample), N_TRAIN)
            label = f"overhead.dask_over_loop_{round(target_s * 1000)}ms"
            pairs = [
                ratio(store, folder, n, hidden, options.seconds)
                for _ in range(options.repeats)
            ]
            for loop, dask in pairs:
                print(f"{label}: {n} samples, loop {loop:.2f}/s, Dask {dask:.2f}/s")
            ratios = [dask / loop for loop, dask in pairs]
            lines.append(line(label, statistics.median(ratios), goal, spread=ratios))
        speeds = [
            measure(store, folder, 1, 1, 2, options.seconds, by_size=5)
            for _ in range(options.repeats)
        ]
        value = statistics.median(speeds)
        lines.append(line("overhead.rounds_per_s", value, 60.0, spread=speeds))
    for text in lines:
        print(text)


def line(name: str, value: float, goal: float, spread: list[float]) -> str:
    """Return one figure as JSON."""
    figure = {
        "name": name,
        "value": round(value, 3),
        "goal": goal,
        "ok": value >= goal,
        "command": TYPED,
        "spread": [round(min(spread), 3), round(max(spread), 3)],
    }
    return json.dumps(figure)


def make_store(folder: Path) -> Path:
    """Ingest random images of MNIST's shape, enough for a score of 200 ms."""
    from pipeline.store import ingest

    rng = np.random.default_rng(0)
    raw = folder / "random.npz"
    np.savez(
        raw,
        x_train=rng.integers(0, 256, (60_000, 28, 28), dtype=np.uint8),
        y_train=np.arange(60_000) % 10,
        x_test=rng.integers(0, 256, (100, 28, 28), dtype=np.uint8),
        y_test=np.arange(100) % 10,
    )
    return ingest("npz", source=raw, store=folder / "random.zarr").path


def single_thread_cost(store: Path, hidden: int) -> float:
    """Seconds of one thread that scoring one sample takes."""
    speed = isolated(store, 20_000, 1, hidden, 5.0)
    return 1.0 / (speed * 20_000)


def isolated(store: Path, n: int, threads: int, hidden: int, seconds: float) -> float:
    """Loss values/s of the in-process loop, in a process of its own."""
    arguments = [str(store), str(n), str(threads), str(hidden), str(seconds)]
    answer = subprocess.run(
        [sys.executable, __file__, "loop", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return float(answer.stdout.strip().splitlines()[-1])


def ratio(
    store: Path, folder: Path, n: int, hidden: int, seconds: float
) -> tuple[float, float]:
    """Loss values/s of the faster loop and of the Dask run, one after the other."""
    loop = max(isolated(store, n, threads, hidden, seconds) for threads in (1, 2))
    return loop, measure(store, folder, n, 4, 2, seconds, hidden=hidden)


def measure(
    store: Path,
    folder: Path,
    n: int,
    n_shards: int,
    workers: int,
    seconds: float,
    threads: int = 1,
    by_size: int = 9,
    hidden: int = 32,
) -> float:
    """Loss values/s of one run; ``workers`` = 0 runs in this process."""
    from pipeline.config import validate_config
    from pipeline.train import train

    cluster = {"kind": "local", "workers": workers, "dashboard": False}
    if workers == 0:
        cluster = {"kind": "in-process"}
    config = validate_config(
        {
            "dataset": str(store),
            "model": {"name": "mlp", "hidden": [hidden]},
            "blocks": f"by_size:{by_size}",
            "loss_samples": n,
            "n_shards": n_shards,
            "budget": {"seconds": seconds},
            "eval_every": 10**9,
            "threads": threads,
            "cluster": cluster,
        }
    )
    name = f"results-{time.monotonic_ns()}"
    ds = train(config, results=folder / name, store=store)
    return float(ds.attrs["n_loss_evals"] / ds.attrs["wall_time_s"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["loop"]:
        where, n_samples, n_threads, n_hidden, length = sys.argv[2:]
        with tempfile.TemporaryDirectory(prefix="ndcao-loop-") as scratch:
            print(
                measure(
                    Path(where),
                    Path(scratch),
                    int(n_samples),
                    4,
                    0,
                    float(length),
                    int(n_threads),
                    hidden=int(n_hidden),
                )
            )
    else:
        main()
