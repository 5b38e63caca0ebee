"""Validation accuracy against projected wall time, by mode, straggler and workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _cases import MODES, on_virtual_clock

from pipeline.asynchronous import SplitsEvaluation
from pipeline.context import context_of
from pipeline.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from scaling import Lab
    from torch import Tensor

WORKERS = (1, 4, 16, 64, 256, 1_024)
VERSIONS = 60
EVAL_EVERY = 4
STRAGGLERS = (False, True)
Curve = tuple[list[float], list[float]]  # seconds, accuracy
Curves = dict[tuple[str, bool, int], Curve]


def draw(lab: Lab, name: str, folder: Path) -> None:
    """Train a case on the virtual clock; write the curves as PNG and SVG."""
    from pipeline.curves import render
    from pipeline.whole_file import write_whole

    curves = {**synchronous(lab, name), **asynchronous(lab, name)}
    figure = picture(curves)
    for kind in ("png", "svg"):
        write_whole(folder / f"scaling.{kind}", render(figure, kind))


def synchronous(lab: Lab, name: str) -> Curves:
    """Train once: a synchronous run is the same on any number of workers."""
    case = lab.cases[name]
    config = case.config("sync", False, 1, VERSIONS)
    changed = {
        "cluster": config.cluster.model_copy(update={"kind": "in-process"}),
        "eval_every": EVAL_EVERY,
    }
    config = config.model_copy(update=changed)
    ds = train(config, results=lab.folder / "picture", store=case.store)
    steps, accuracy = ds["step"].values, ds["val_accuracy"].values
    print("sync", [round(float(y), 3) for y in accuracy], flush=True)
    curves: Curves = {}
    for straggler in STRAGGLERS:
        for n in WORKERS:
            each_s = lab.seconds(name, "sync", straggler, n, 30)
            curves["sync", straggler, n] = (steps * each_s).tolist(), accuracy.tolist()
    return curves


def asynchronous(lab: Lab, name: str) -> Curves:
    """Train once for each number of workers: the order of events decides the run."""
    case = lab.cases[name]
    context = context_of(case.spec(VERSIONS))

    def evaluate(params: Tensor, buffers: Tensor | None) -> SplitsEvaluation:
        return SplitsEvaluation(context, params, buffers)

    curves: Curves = {}
    for straggler in STRAGGLERS:
        for n in WORKERS:
            config = case.config("async", straggler, n, VERSIONS)
            config = config.model_copy(update={"eval_every": EVAL_EVERY})
            costs = lab.costs(name, "async", n)
            training = on_virtual_clock(context, config, n, costs, evaluate)
            rows = training.journal.evals
            x = [float(row["wall_time_s"]) for row in rows]
            y = [float(row["val_accuracy"]) for row in rows]
            curves["async", straggler, n] = x, y
            print("async", straggler, n, f"{x[-1]:.1f} s", f"{y[-1]:.3f}", flush=True)
    return curves


def picture(curves: Curves) -> Figure:
    """One panel for each mode, without and with a straggler; all on the same axes."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(WORKERS)))
    widths = np.linspace(3.2, 1.0, len(WORKERS))  # curves that coincide stay visible
    marks = "osD^vX"
    for row, straggler in enumerate(STRAGGLERS):
        for column, mode in enumerate(MODES):
            panel = panels[row, column]
            looks = zip(WORKERS, shades, marks, widths, strict=True)
            for n, shade, mark, width in looks:
                x, y = (np.array(part) for part in curves[mode, straggler, n])
                seen = x > 0
                panel.plot(
                    x[seen],
                    y[seen],
                    color=shade,
                    marker=mark,
                    markersize=4,
                    linewidth=width,
                    label=f"{n:,}",
                )
            title = {"sync": "synchronous", "async": "asynchronous"}[mode]
            panel.set_title(f"{title}, {'one' if straggler else 'no'} straggler")
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[1]:
        panel.set_xlabel("Projected wall time (s)")
    for panel in panels[:, 0]:
        panel.set_ylabel("Validation accuracy")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="Workers",
        loc="outside lower center",
        ncols=len(WORKERS),
        frameon=False,
    )
    return figure
