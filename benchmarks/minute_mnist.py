"""Test accuracy on MNIST after a minute of training without a backward pass.

Each method trains through ``ndcao train`` on a local cluster, on two cores: evolution
by scalar losses with low-rank probes, and activity perturbation, MLP 784-32-10, 60 s;
activity perturbation of LeNet, 300 s; and back-propagation beside them, for as long and
at its plateau. A pilot run of some seconds finds how many samples fit, so that
schedules end with the time. Divides nothing: the figures are accuracies, and the gap
to back-propagation is stated for each. Test data choose nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _command import TYPED
from _mnist import mnist_parser, parsed

PILOT_S = 6.0
MLP, LENET = ("--model", "mlp", "--hidden", "32"), ("--model", "lenet")


@dataclass(frozen=True, slots=True)
class Method:
    """One command line and the accuracy that it is to reach."""

    name: str
    seconds: float
    flags: tuple[str, ...]
    goal: float | None = None
    peer: str = ""  # what the gap is taken to
    workers: int = 2


def settings(*pairs: str) -> tuple[str, ...]:
    """``--set`` before each pair."""
    return tuple(word for pair in pairs for word in ("--set", pair))


SGD = ("-a", "sgd", *settings("sgd.step_size=0.05", "sgd.batch_size=128"))
METHODS = (
    Method("sgd_mlp", 60.0, (*MLP, *SGD)),
    Method(
        "low_rank_probes_mlp",
        60.0,
        (
            *(*MLP, "-a", "open-es"),
            *settings(
                "open_es.rank=1",
                "open_es.population_size=512",
                "open_es.probe_kind=sign",
                "open_es.noise_std=0.01",
                "open_es.step_size=0.004",
                "open_es.final_fraction=0",
                "loss_samples=256",
            ),
        ),
        0.945,
        "sgd_mlp",
    ),
    Method(
        "activity_mlp",
        60.0,
        (
            *(*MLP, "-a", "activity-perturbation"),
            *settings("activity_perturbation.draws=8", "n_shards=1", "threads=2"),
        ),
        0.965,
        "sgd_mlp",
        workers=1,
    ),
    Method("sgd_lenet", 300.0, (*LENET, *SGD)),
    Method(
        "activity_lenet",
        300.0,
        (
            *(*LENET, "-a", "activity-perturbation"),
            *settings("activity_perturbation.draws=8", "loss_samples=128"),
            *settings("n_shards=1", "threads=2"),
        ),
        0.96,
        "sgd_lenet",
        workers=1,
    ),
)


def main() -> None:
    """Train, print, and end with the JSON lines."""
    parser = mnist_parser(__doc__, seeds=3, workers=0)
    names = [method.name for method in METHODS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parsed(parser)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ndcao-minute-") as name:
        home = Path(name)
        ndcao(home, "ingest", "mnist", "--from", str(options.mnist))
        for method in METHODS:
            if method.name in options.only:
                seeds = 1 if method.seconds > 60 else options.seeds
                samples = fitting(home, method)
                runs = [train(home, method, seed, samples) for seed in range(seeds)]
                found[method.name] = [run["test_accuracy"] for run in runs]
    for method in METHODS:
        if method.goal is not None and method.name in found:
            print(json.dumps(line(method, found)))


def fitting(home: Path, method: Method) -> int:
    """Samples that fit into the method's seconds, from a pilot run."""
    pilot = ndcao(home, *command(method, 99), "--budget", f"seconds={PILOT_S}")
    samples = int(pilot["n_samples"] * method.seconds / pilot["wall_time_s"])
    print(
        f"{method.name}: {samples / method.seconds:,.0f} samples/s, {samples:,} in all"
    )
    return samples


def train(home: Path, method: Method, seed: int, samples: int) -> dict[str, Any]:
    """Train one run for the samples, and no longer than the seconds."""
    budget = f"samples={samples},seconds={method.seconds:g}"
    run = ndcao(home, *command(method, seed), "--budget", budget)
    facts = {
        key: run[key]
        for key in ("test_accuracy", "val_accuracy", "wall_time_s", "stop_reason")
        if key in run
    }
    print(f"{method.name}, seed {seed}: {facts}")
    return run


def command(method: Method, seed: int) -> tuple[str, ...]:
    """The arguments of ``ndcao`` but for the budget."""
    where = ("--workers", str(method.workers), "--seed", str(seed), "--quiet")
    return ("train", "-d", "mnist", *method.flags, *where)


def ndcao(home: Path, *arguments: str) -> dict[str, Any]:
    """Run the command line in ``home``; returns its JSON line."""
    answer = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments, "--json"],
        env=os.environ | {"NDCAO_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1_200,
    )
    found: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return found


def line(method: Method, found: dict[str, list[float]]) -> dict[str, Any]:
    """One figure as JSON: the median of the seeds."""
    runs = found[method.name]
    value = statistics.median(runs)
    figure = {
        "name": f"minute_mnist.{method.name}",
        "value": round(value, 4),
        "goal": method.goal,
        "ok": value >= (method.goal or 0.0),
        "command": TYPED,
        "spread": [round(min(runs), 4), round(max(runs), 4)],
        "seeds": len(runs),
        "seconds": method.seconds,
    }
    if method.peer in found:
        gap = value - statistics.median(found[method.peer])
        figure["minus_back_propagation"] = round(gap, 4)
    return figure


if __name__ == "__main__":
    main()
