"""What communicating less, or not waiting, saves: ratios of runs in the same call.

node_based: wall time of all-reduce SGD ÷ node-based communication, with an injected
latency between two machines. selsync: bytes of all-reduce ÷ SelSync. async_sgd: wall
time of all-reduce SGD ÷ asynchronous SGD, with one delayed replica. All at equal
samples; the differences in accuracy are figures too. MNIST, MLP 784-32-10, 4 replicas.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _command import TYPED
from _mnist import mnist_parser, parsed

LOSS = -0.01  # of accuracy, at most


def main() -> None:
    """Train the pairs, print, and end with the JSON lines."""
    parser = mnist_parser(__doc__, seeds=3)
    parser.add_argument("--samples", type=int, default=108_000, help="of each run")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds")
    parser.add_argument("--threshold", type=float, default=0.1, help="of SelSync")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds a step")
    options = parsed(parser)
    from distributed import LocalCluster

    from pipeline.store import ingest

    figures = []
    with (
        tempfile.TemporaryDirectory(prefix="ndcao-communication-") as name,
        LocalCluster(
            n_workers=options.workers, threads_per_worker=1, dashboard_address=None
        ) as cluster,
    ):
        folder = Path(name)
        ingest("mnist", source=options.mnist, store=folder / "mnist.zarr")
        lab = Lab(folder, options, cluster.scheduler_address)
        far = {"machines": 2, "latency_s": options.latency}
        slow = {"delays": {3: options.delay}}
        selsync = {"kind": "selsync", "threshold": options.threshold}
        node_based, free = {"kind": "node-based"}, {"kind": "async-sgd"}
        figures += lab.pair("node_based", node_based, far, "wall_time_s", 1.0)
        figures += lab.pair("selsync", selsync, {}, "bytes_moved", 1.0)
        figures += lab.pair("async_sgd", free, slow, "wall_time_s", 1.0)
    for figure in figures:
        print(json.dumps(figure))


class Lab:
    """Trains pairs of runs in one folder."""

    def __init__(self, folder: Path, options: argparse.Namespace, address: str) -> None:
        self.folder, self.options, self.address = folder, options, address

    def pair(
        self,
        name: str,
        algorithm: dict[str, Any],
        settings: dict[str, Any],
        what: str,
        goal: float,
    ) -> list[dict[str, Any]]:
        """Median ratio all-reduce ÷ the other, and the median accuracy difference."""
        kind = algorithm["kind"]
        ratios, gaps = [], []
        for seed in range(self.options.seeds):
            reference = self.train({"kind": "all-reduce-sgd"}, settings, seed, name)
            other = self.train(algorithm, settings, seed, name)
            ratios.append(reference[what] / other[what])
            gaps.append(other["test_accuracy"] - reference["test_accuracy"])
            print(
                f"{name}, seed {seed}: all-reduce {reference[what]:,.1f}, {kind} "
                f"{other[what]:,.1f} ({what}); accuracies "
                f"{reference['test_accuracy']:.4f}, {other['test_accuracy']:.4f}",
                flush=True,
            )
        ratio, gap = float(np.median(ratios)), float(np.median(gaps))
        common = {"command": TYPED}
        spread = {"spread": [round(min(ratios), 3), round(max(ratios), 3)]}
        return [
            {
                "name": f"communication.{name}_{what}_ratio",
                "value": round(ratio, 3),
                "goal": goal,
                "ok": ratio > goal,
                **common,
                **spread,
            },
            {
                "name": f"communication.{name}_accuracy_difference",
                "value": round(gap, 4),
                "goal": LOSS,
                "ok": gap >= LOSS,
                **common,
            },
        ]

    def train(
        self,
        algorithm: dict[str, Any],
        settings: dict[str, Any],
        seed: int,
        experiment: str,
    ) -> dict[str, Any]:
        """Attributes of one run."""
        from pipeline.config import validate_config
        from pipeline.train import train

        data = {
            "dataset": "mnist",
            "model": {"name": "mlp", "hidden": [32]},
            "algorithm": algorithm,
            "mode": "async" if algorithm["kind"] == "async-sgd" else "sync",
            "budget": {"samples": self.options.samples},
            "seed": seed,
            "experiment": experiment,
            "cluster": {
                "kind": "address",
                "address": self.address,
                "workers": self.options.workers,
            },
            **settings,
        }
        results, store = self.folder / "results", self.folder / "mnist.zarr"
        attrs: dict[str, Any] = train(
            validate_config(data), results=results, store=store
        ).attrs
        return attrs


if __name__ == "__main__":
    main()
