"""All systems on MNIST at equal budgets: accuracy, bytes, wall time; tables in docs.

MLP 784-32-10. Replica methods and their baselines: 4 replicas, 5 epochs of samples in
all of them together. Gradient-free methods: equal loss values. NEXT on full local
batches has a budget of its own. Figures are means over seeds, with the half-width of a
Student-t interval at 95 %. Every run is stored, so that a second call only trains what
is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from _command import TYPED
from _mnist import mnist_parser, parsed
from scipy import stats

SAMPLES = 270_000  # five epochs of the 54,000 training images
LOSS_VALUES = 6_000
REPLICAS = {
    "sgd": 0.94,
    "adam": 0.94,
    "all-reduce-sgd": 0.94,
    "local-sgd": 0.94,
    "node-based": 0.94,
    "selsync": 0.94,
    "dbs": 0.94,
    "osp": 0.94,
    "async-sgd": 0.94,
    "layerwise-async-sgd": 0.94,
    "dfa": 0.94,
    "nosync": 0.93,
    "pso-ps": 0.93,
    "next": 0.93,
}
SEARCHES = {"nd-cao": 0.92, "open-es": 0.0, "spsa": 0.0, "random-search": 0.0}
FULL_BATCH = {
    "algorithm": {"kind": "next", "batch_size": 0},
    "budget": {"steps": 200},
}
FULL_BATCH_GOAL = 0.90


def main() -> None:
    """Train what is missing, print and write the tables, end with the JSON lines."""
    parser = mnist_parser(__doc__, seeds=3)
    parser.add_argument(
        "--out", type=Path, default=Path("systems"), help="stores, runs, tables.md"
    )
    parser.add_argument("--only", nargs="*", help="methods; default: all")
    parser.add_argument("--pictures", type=Path, help="folder for a curve a method")
    options = parsed(parser)
    from distributed import LocalCluster

    from pipeline.store import ingest

    store = options.out / "mnist.zarr"
    if not store.exists():
        ingest("mnist", source=options.mnist, store=store)
    with LocalCluster(
        n_workers=options.workers, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        lab = Lab(options, store, cluster.scheduler_address)
        tables, figures = lab.tables()
    if options.pictures:
        draw(lab.curves, options.pictures)
    text = "\n\n".join(tables) + "\n"
    print(text)
    (options.out / "tables.md").write_text(text, encoding="utf-8")
    for figure in figures:
        print(json.dumps(figure))


class Lab:
    """Trains runs into one folder and reads off their figures."""

    def __init__(self, options: argparse.Namespace, store: Path, address: str) -> None:
        self.options, self.store, self.address = options, store, address
        self.curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def tables(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Markdown tables and figures."""
        options, figures, tables = self.options, [], [about(self.options)]
        parts = [
            (
                f"Equal samples: {SAMPLES:,} in all nodes together",
                {k: ({"algorithm": k}, g) for k, g in REPLICAS.items()},
                {"budget": {"samples": SAMPLES}},
            ),
            (
                f"Equal loss values: {LOSS_VALUES:,}",
                {k: ({"algorithm": k}, g) for k, g in SEARCHES.items()},
                {"budget": {"loss_values": LOSS_VALUES}},
            ),
            (
                "NEXT on full local batches: 200 rounds",
                {"next": (FULL_BATCH, FULL_BATCH_GOAL)},
                {},
            ),
        ]
        for title, methods, common in parts:
            rows = []
            for kind, (settings, goal) in methods.items():
                if options.only and kind not in options.only:
                    continue
                row = self.row(kind, common | settings)
                rows.append(row)
                figures.append(figure(kind, title, row, goal))
            if rows:
                tables.append(f"## {title}\n\n{markdown(rows)}")
        return tables, figures

    def row(self, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Mean figures of one method over the seeds."""
        from pipeline.config import validate_config
        from pipeline.train import train

        found = []
        for seed in range(self.options.seeds):
            data = {
                "dataset": "mnist",
                "model": {"name": "mlp", "hidden": [32]},
                "seed": seed,
                "mode": default_mode(kind),
                "cluster": {
                    "kind": "address",
                    "address": self.address,
                    "workers": self.options.workers,
                },
                **settings,
            }
            results = self.options.out / "results"
            ds = train(validate_config(data), results=results, store=self.store)
            print(f"{ds.attrs['run_id']}: {ds.attrs['test_accuracy']:.4f}", flush=True)
            found.append(ds.attrs)
            if "algorithm" in settings and settings["algorithm"] == kind:
                curve = ds["n_samples"].values, ds["test_accuracy"].values
                self.curves.setdefault(kind, []).append(curve)
        mean, half = interval([attrs["test_accuracy"] for attrs in found])
        return {
            "method": kind,
            "mode": found[0]["mode"],
            "test accuracy": f"{mean:.4f} ± {half:.4f}",
            "samples": f"{average(found, 'n_samples'):,.0f}",
            "loss values": f"{average(found, 'n_loss_evals'):,.0f}",
            "gradients": f"{average(found, 'n_gradient_evals'):,.0f}",
            "MB moved": f"{average(found, 'bytes_moved') / 1e6:,.1f}",
            "wall time s": f"{average(found, 'wall_time_s'):,.1f}",
            "mean": mean,
        }


def draw(curves: dict[str, list[tuple[np.ndarray, np.ndarray]]], folder: Path) -> None:
    """One picture a method: test accuracy against samples, SGD's for comparison."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for kind, runs in curves.items():
        picture = Figure(figsize=(6.4, 3.0), dpi=100, layout="constrained")
        axes = picture.subplots()
        for samples, accuracy in curves.get("sgd", []) if kind != "sgd" else []:
            axes.plot(samples, accuracy, color="0.65", linewidth=1, label="sgd")
        for samples, accuracy in runs:
            axes.plot(samples, accuracy, color="tab:blue", linewidth=1.5, label=kind)
        if max(samples[-1] for samples, _ in runs) > 10 * SAMPLES:
            axes.set_xscale("symlog", linthresh=SAMPLES / 20)
        named = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        axes.legend(named.values(), named.keys(), loc="lower right", frameon=False)
        high = min(accuracy[-1] for _, accuracy in runs) > 0.9
        axes.set(
            xlabel="samples scored or trained on, all nodes together",
            ylim=(0.85 if high else 0, 1),
        )
        axes.set_ylabel("test accuracy")
        axes.grid(color="0.9")
        picture.savefig(folder / f"{kind}.png")


def default_mode(kind: str) -> str:
    """Synchronous where there is a choice, but for what is asynchronous by nature."""
    from blocks import ALGORITHMS

    modes = ALGORITHMS[kind].modes
    return "async" if kind == "nosync" or "sync" not in modes else "sync"


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its Student-t interval at 95 %; NaN for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def average(found: list[dict[str, Any]], name: str) -> float:
    """Mean of an attribute."""
    return float(np.mean([attrs[name] for attrs in found]))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table, best accuracy first."""
    names = [name for name in rows[0] if name != "mean"]
    ordered = sorted(rows, key=lambda row: -row["mean"])
    lines = [names, ["---"] * len(names)]
    lines += [[str(row[name]) for name in names] for row in ordered]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(options: argparse.Namespace) -> str:
    """What the tables' figures were made with."""
    from pipeline.record import git_state, package_versions

    commit, _ = git_state()
    versions = package_versions()
    return (
        f"Seeds 0 to {options.seeds - 1}, mean ± half-width of the 95 % Student-t "
        f"interval; test set of MNIST; MLP 784-32-10; {options.workers} Dask workers "
        f"on {os.cpu_count()} cores, {platform.machine()}; torch {versions['torch']}; "
        f"commit {commit[:10]}.\n\n"
        "```sh\npython benchmarks/systems_mnist.py\n```"
    )


def figure(kind: str, title: str, row: dict[str, Any], goal: float) -> dict[str, Any]:
    """One JSON line."""
    return {
        "name": f"systems_mnist.{kind}",
        "value": round(row["mean"], 4),
        "goal": goal,
        "ok": row["mean"] >= goal,
        "command": TYPED,
        "budget": title,
    }


if __name__ == "__main__":
    main()
