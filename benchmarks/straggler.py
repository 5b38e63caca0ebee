"""Wall time of asynchronous ÷ synchronous runs to the same loss, one block delayed.

ND-CAO with one scalar loss a round, OpenAI-ES with low-rank probes, and activity
perturbation, on MNIST. A synchronous pilot without a delay finds what a round takes;
every update of one block then takes ``--delay`` such rounds more, in both modes, on a
worker of its own. The loss to reach is the higher of the two that a pair of runs ends
with, so both have reached it; the times are those of the first evaluation at or below
it. Evaluations are not counted as time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _command import TYPED
from _mnist import mnist_parser, parsed

GOAL = 0.5
PILOT_ROUNDS = 100

ACTIVITY = {
    "algorithm": "activity-perturbation",
    "model": {"name": "mlp", "hidden": [64, 64, 64]},
    "loss_samples": 4_096,
}


@dataclass(frozen=True, slots=True)
class Method:
    """A configuration, how many versions a run has, and which block is delayed."""

    name: str
    settings: dict[str, Any]
    versions: int
    delayed: int


METHODS = (
    Method(
        "nd_cao",
        {"algorithm": "nd-cao", "blocks": "by_unit:9", "loss_samples": 10_000},
        versions=400,
        delayed=2,
    ),
    Method(
        "probes",
        {
            "algorithm": {
                "kind": "open-es",
                "rank": 1,
                "population_size": 256,
                "probe_kind": "sign",
                "noise_std": 0.01,
                "step_size": 0.004,
            },
            "blocks": "by_unit:9",
            "loss_samples": 512,
            "redraw_every": 1,
        },
        versions=250,
        delayed=2,
    ),
    Method("activity_perturbation", ACTIVITY, versions=250, delayed=1),
    Method(
        "activity_perturbation_pipelined",
        ACTIVITY | {"pipelined": True},
        versions=250,
        delayed=1,
    ),
)


def main() -> None:
    """Train the pairs, and end with the JSON lines."""
    parser = mnist_parser(__doc__, seeds=3)
    names = [method.name for method in METHODS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--delay", type=float, default=4.0, help="of an update, in rounds of the pilot"
    )
    options = parsed(parser)
    from pipeline.store import ingest

    with tempfile.TemporaryDirectory(prefix="ndcao-straggler-") as name:
        folder = Path(name)
        store = ingest("mnist", source=options.mnist, store=folder / "mnist.zarr").path
        lines = [
            ratio(method, store, folder, options)
            for method in METHODS
            if method.name in options.only
        ]
    for line in lines:
        print(json.dumps(line))


def ratio(
    method: Method, store: Path, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one method's ratio, a pair of runs a seed."""
    pilot = run(method, store, folder, options, 0, "sync", 0.0, PILOT_ROUNDS)
    round_s = pilot.attrs["wall_time_s"] / PILOT_ROUNDS
    delay_s = options.delay * round_s
    print(f"{method.name}: a round takes {round_s:.4f} s, the delay is {delay_s:.4f} s")
    found, ends = [], []
    for seed in range(options.seeds):
        pair = [
            run(method, store, folder, options, seed, mode, delay_s, method.versions)
            for mode in ("sync", "async")
        ]
        last = [float(ds["train_loss"][-1]) for ds in pair]
        times = [seconds_to(ds, max(last)) for ds in pair]
        found.append(times[1] / times[0])
        ends.append(last)
        print(
            f"{method.name}, seed {seed}: loss {max(last):.4f} after {times[0]:.1f} s "
            f"synchronous, {times[1]:.1f} s asynchronous; at the end {last[0]:.4f} "
            f"after {pair[0].attrs['wall_time_s']:.1f} s, {last[1]:.4f} after "
            f"{pair[1].attrs['wall_time_s']:.1f} s"
        )
    value = math.exp(statistics.fmean(map(math.log, found)))
    return {
        "name": f"straggler.async_over_sync_{method.name}",
        "value": round(value, 3),
        "goal": GOAL,
        "ok": value <= GOAL,
        "command": TYPED,
        "spread": [round(min(found), 3), round(max(found), 3)],
        "delay_s": round(delay_s, 4),
        "versions": method.versions,
        "last_losses": [[round(x, 4) for x in pair] for pair in ends],
    }


def seconds_to(ds: Any, loss: float) -> float:
    """Wall time of the first evaluation with a training loss at or below ``loss``."""
    reached = (ds["train_loss"] <= loss).values
    return float(ds["wall_time_s"].values[reached][0])


def run(
    method: Method,
    store: Path,
    folder: Path,
    options: argparse.Namespace,
    seed: int,
    mode: str,
    delay_s: float,
    versions: int,
) -> Any:
    """Train one run; returns its dataset."""
    from pipeline.config import validate_config
    from pipeline.train import train

    probes = method.settings["algorithm"]
    kind = probes if isinstance(probes, str) else probes["kind"]
    per_version = {"nd-cao": 1, "open-es": 256, "activity-perturbation": 2}[kind]
    config = validate_config(
        {
            "dataset": "mnist",
            "model": {"name": "mlp", "hidden": [32]},
            **method.settings,
            "mode": mode,
            "budget": {"loss_values": versions * per_version},
            "seed": seed,
            "delays": {method.delayed: delay_s} if delay_s else {},
            "own_worker": [method.delayed],
            "eval_every": max(1, versions // 40),
            "cluster": {"workers": options.workers, "dashboard": False},
        }
    )
    return train(config, results=folder / f"delay-{delay_s:.6f}", store=store)


if __name__ == "__main__":
    main()
