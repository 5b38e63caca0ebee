"""Test accuracy of ND-CAO with its shipped defaults on MNIST after 6,000 loss values.

One scalar global loss a round, MLP 784-32-10, synchronous; then the asynchronous run
with the same number of updates of every block. Divides nothing: the figures are
accuracies, and the samples behind them are printed beside them. Test data choose
nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from _command import TYPED
from _mnist import mnist_parser, parsed

GOAL = 0.92
DIFFERENCE = -0.01


def main() -> None:
    """Train, print, and end with the JSON lines."""
    parser = mnist_parser(__doc__, seeds=1)
    parser.add_argument("--values", type=int, default=6_000, help="loss values")
    options = parsed(parser)
    from pipeline.store import ingest

    lines = []
    with tempfile.TemporaryDirectory(prefix="ndcao-mnist-") as name:
        folder = Path(name)
        store = ingest("mnist", source=options.mnist, store=folder / "mnist.zarr").path
        for seed in range(options.seeds):
            sync = run(store, folder, options, seed, "sync", "loss_values")
            lines.append(line("nd_cao_mnist.sync_accuracy", sync, GOAL, seed))
            free = run(store, folder, options, seed, "async", "steps")
            lines.append(line("nd_cao_mnist.async_accuracy", free, GOAL, seed))
            gap = {
                "test_accuracy": free["test_accuracy"] - sync["test_accuracy"],
                "n_samples": free["n_samples"],
                "mean_staleness": free["mean_staleness"],
            }
            lines.append(line("nd_cao_mnist.async_minus_sync", gap, DIFFERENCE, seed))
    for text in lines:
        print(text)


def run(
    store: Path,
    folder: Path,
    options: argparse.Namespace,
    seed: int,
    mode: str,
    budget: str,
) -> dict[str, Any]:
    """Train one run; returns what is reported of it."""
    from pipeline.compare import mean_staleness
    from pipeline.config import validate_config
    from pipeline.train import train

    config = validate_config(
        {
            "dataset": "mnist",
            "model": {"name": "mlp", "hidden": [32]},
            "algorithm": "nd-cao",
            "mode": mode,
            "budget": {budget: options.values},
            "seed": seed,
            "cluster": {"workers": options.workers, "dashboard": False},
        }
    )
    ds = train(config, results=folder / "results", store=store)
    seen, scored = ds["seen_version"].values, ds["scored_version"].values
    facts = {key: ds.attrs[key] for key in ("n_loss_evals", "n_samples", "wall_time_s")}
    facts["test_accuracy"] = ds.attrs["test_accuracy"]
    facts["mean_staleness"] = round(float(mean_staleness(seen, scored)), 2)
    print(f"{mode}, seed {seed}: {facts}")
    return facts


def line(name: str, facts: dict[str, Any], goal: float, seed: int) -> str:
    """Return one figure as JSON."""
    value = facts["test_accuracy"]
    figure = {
        "name": name,
        "value": round(value, 4),
        "goal": goal,
        "ok": value >= goal,
        "command": TYPED,
        "seed": seed,
        **{k: v for k, v in facts.items() if k != "test_accuracy"},
    }
    return json.dumps(figure)


if __name__ == "__main__":
    main()
