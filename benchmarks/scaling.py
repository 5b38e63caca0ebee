"""Projected ÷ measured wall time, and wall time projected for 1 to 1,024 workers.

The projection runs the harness's coordinator on a virtual clock. What single operations
take is measured first, on a local cluster of two workers that are both busy. It is then
checked against real runs: on 1, 2 and 4 workers with a score and updates that wait for
a scripted time (they hold the worker's thread and not the core), and on 1 and 2 workers
with real computing (MNIST, MLP 784-32-10, OpenAI-ES), whose cost is measured again
right before and after every run, on as many workers. ``--picture`` trains on the
virtual clock and draws validation accuracy against projected wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _command import TYPED

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _cases import MODES, Case, Timing
from _costs import Computing, async_costs, mean, moving_costs, own_costs, sync_costs
from _mnist import HERE

from pipeline.harness import MAX_ROUNDS_AHEAD, PIECE_S
from pipeline.placement import place
from pipeline.virtual import Costs

WORKERS = tuple(2**i for i in range(11))
TOLERANCE = 0.15
GOAL_SPEEDUP = 1.4
WAIT_SAMPLES = 600  # of a score of the waiting network


def main() -> None:
    """Measure, check, project; end with the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, default=HERE, help="folder of MNIST")
    parser.add_argument(
        "--only", nargs="*", choices=("waiting", "computing", "table"), help="parts"
    )
    parser.add_argument("--versions", type=int, default=12, help="of a waiting run")
    parser.add_argument(
        "--wait", type=float, default=2.0, help="seconds of a waiting score, whole"
    )
    parser.add_argument("--picture", type=Path, help="folder for scaling.png and .svg")
    options = parser.parse_args()
    parts = ("waiting", "computing", "table") if options.only is None else options.only
    on_mnist = bool({"computing", "table"} & set(parts) or options.picture)
    if on_mnist and not options.mnist.is_dir():
        parser.error(f"`--mnist` must be a folder; got {options.mnist}. Name one.")
    from pipeline.store import ingest

    with tempfile.TemporaryDirectory(prefix="ndcao-scaling-") as name:
        folder = Path(name)
        digits = ingest("digits", store=folder / "digits.zarr").path
        cases = {"waiting": waiting(digits, options.wait)}
        if on_mnist:
            store = ingest("mnist", source=options.mnist, store=folder / "mnist.zarr")
            cases |= {"mlp": mlp(store.path), "lenet": lenet(store.path)}
        lines = Lab(cases, digits, folder).run(parts, options)
    for line in lines:
        print(json.dumps(line))


def waiting(digits: Path, score_s: float) -> Case:
    """A score in 6 shards and 5 blocks that wait, and compute next to nothing.

    A block's update waits for a 15th of what a score takes on one worker; the straggler
    for as long as a score more.
    """
    model = {"name": "_waiting:network", "options": {"seconds": score_s / WAIT_SAMPLES}}
    settings = {
        "dataset": str(digits),
        "model": model,
        "loss_samples": WAIT_SAMPLES,
        "n_shards": 6,
    }
    return Case(digits, settings, 5, delay_s=score_s / 15, straggler_s=score_s)


def mlp(store: Path) -> Case:
    """OpenAI-ES: 256 probes on 8,192 samples in 256 shards, 8 blocks."""
    settings = {
        "dataset": str(store),
        "model": {"name": "mlp", "hidden": [32]},
        "algorithm": {"kind": "open-es", "population_size": 256},
        "loss_samples": 8_192,
        "n_shards": 256,
    }
    return Case(store, settings, n_blocks=8, straggler_s=1.0)


def lenet(store: Path) -> Case:
    """ND-CAO, one loss a version: LeNet on all 54,000 samples in 1,024 shards."""
    settings = {
        "dataset": str(store),
        "model": {"name": "lenet"},
        "loss_samples": 54_000,
        "n_shards": 1_024,
    }
    return Case(store, settings, n_blocks=8, straggler_s=1.0)


class Lab:
    """Costs of all cases, and what is made of them."""

    def __init__(self, cases: dict[str, Case], digits: Path, folder: Path) -> None:
        self.cases, self.folder = cases, folder
        self.timings = {name: Timing(case, digits) for name, case in cases.items()}
        self.specs = {name: case.spec() for name, case in cases.items()}
        tiny = next(iter(self.timings.values())).context.spec
        self.own = own_costs(self.specs, 2)
        self.moving = moving_costs(list(self.specs.values())[-1], tiny)
        for name, own in self.own.items():
            print(f"{name}: {in_ms(asdict(own))}")
        print(f"cluster: {in_ms(asdict(self.moving))}", flush=True)

    def run(self, parts: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
        """Do what was asked for; the figures."""
        lines = []
        if "waiting" in parts:
            found = self.check("waiting", (1, 2, 4), options.versions, (False, True))
            lines.append(error_line("scaling.error_waiting", found))
        if "computing" in parts:
            found = self.check("mlp", (1, 2), 12, (False,))
            lines.append(error_line("scaling.error_computing", found))
            for mode in MODES:
                speedup = found[mode, False, 1][0] / found[mode, False, 2][0]
                name = f"scaling.speedup_2_workers_{mode}"
                lines.append(line(name, speedup, GOAL_SPEEDUP, speedup >= GOAL_SPEEDUP))
        if "table" in parts:
            for name in ("mlp", "lenet"):
                self.table(name)
        if options.picture:
            from _scaling_picture import draw

            draw(self, "mlp", options.picture)
        return lines

    def costs(self, name: str, mode: str, n_workers: int) -> Costs:
        """Of a case, in a mode, on so many workers."""
        if mode == "sync":
            return sync_costs(self.own[name], self.moving, n_workers)
        return async_costs(self.own[name], self.moving)

    def seconds(
        self, name: str, mode: str, straggler: bool, n_workers: int, versions: int
    ) -> float:
        """Projected seconds a version.

        A synchronous run's rounds come in pieces, each a task a worker; between two of
        them nothing is computed.
        """
        costs = self.costs(name, mode, n_workers)
        timing = self.timings[name]
        each_s = timing.projected(mode, straggler, n_workers, costs, versions)
        if mode == "async":
            return each_s
        alone = (0,) if straggler and n_workers > 1 else ()
        case = self.cases[name]
        ranks = place(case.n_blocks, case.settings["n_shards"], n_workers, alone)
        between_s = self.moving.between_s + (len(ranks) - 2) * self.moving.task_s
        between_s = max(between_s, 0.0)
        return each_s + between_s / min(max(PIECE_S // each_s, 1), MAX_ROUNDS_AHEAD)

    def check(
        self,
        name: str,
        workers: tuple[int, ...],
        versions: int,
        stragglers: tuple[bool, ...],
    ) -> dict[tuple[str, bool, int], tuple[float, float]]:
        """Measured and projected seconds a version of real runs."""
        heads = ("mode", "straggler", "workers", "measured ms", "projected ms", "ratio")
        print(f"\n{name}, a version\n\n{markdown(heads)}\n{'|---' * len(heads)}|")
        found = {}
        kept = self.own[name]
        for mode in MODES:
            for straggler in stragglers:
                for n in workers:
                    case = self.cases[name]
                    before = self.own_again(name, n)
                    real = case.measured(mode, straggler, n, versions, self.folder)
                    self.own[name] = mean([before, self.own_again(name, n)])
                    told = self.seconds(name, mode, straggler, n, versions)
                    found[mode, straggler, n] = real, told
                    times = (f"{1e3 * real:.0f}", f"{1e3 * told:.0f}")
                    row = (mode, "one" if straggler else "no", n, *times)
                    print(markdown((*row, f"{told / real:.3f}")), flush=True)
        self.own[name] = kept
        return found

    def own_again(self, name: str, n_workers: int) -> Computing:
        """What a case's computing costs now, on so many workers at once.

        A core's speed changes by the minute. What waits takes what the script says.
        """
        if name == "waiting":
            return self.own[name]
        return own_costs({name: self.specs[name]}, n_workers)[name]

    def table(self, name: str) -> None:
        """Print projected milliseconds a version for all numbers of workers."""
        heads = ["workers"]
        heads += [f"{mode}{more}" for mode in MODES for more in ("", ", straggler")]
        print(f"\n{name}, ms a version\n\n{markdown(heads)}\n{'|---' * len(heads)}|")
        for n in WORKERS:
            row = [
                f"{1e3 * self.seconds(name, mode, straggler, n, 20):.0f}"
                for mode in MODES
                for straggler in (False, True)
            ]
            print(markdown([f"{n:,}", *row]), flush=True)


def markdown(cells: Iterable[object]) -> str:
    """One row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def in_ms(seconds: dict[str, float]) -> str:
    """Durations for people."""
    parts = (f"{k.removesuffix('_s')} {1e3 * v:.3g} ms" for k, v in seconds.items())
    return ", ".join(parts)


def error_line(name: str, found: dict[Any, tuple[float, float]]) -> dict[str, Any]:
    """The largest relative error of some projections."""
    errors = {key: abs(told / real - 1) for key, (real, told) in found.items()}
    worst = max(errors, key=lambda key: errors[key])
    mode, straggler, n = worst
    more = {
        "n_runs": len(errors),
        "worst": f"{mode}, {n} workers{', straggler' if straggler else ''}",
    }
    return line(name, errors[worst], TOLERANCE, errors[worst] <= TOLERANCE, **more)


def line(
    name: str, value: float, goal: float, ok: bool, **more: object
) -> dict[str, Any]:
    """One figure."""
    return {
        "name": name,
        "value": round(float(value), 3),
        "goal": goal,
        "ok": bool(ok),
        "command": TYPED,
        **more,
    }


if __name__ == "__main__":
    main()
