"""Static pictures of the report's figures: curves, and asynchrony run by run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from pipeline.asynchrony import Activity, Window
from pipeline.compare import loaded
from pipeline.curves import curves_figure, literal_text, render
from pipeline.outputs import check_folder, may_write
from pipeline.report_asynchrony import RunActivity, activity_of_runs
from pipeline.series import AXES, PALETTE, group_runs
from pipeline.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["activity_figure", "write_figures"]

KINDS = ("png", "svg")
_SCORES, _IDLE = "#9AA5B1", "#E6EAEF"


def write_figures(ds: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write every figure of the page as PNG and SVG, each whole or not at all.

    ``curves`` has one column a budget that is used; ``activity-<run_id>`` is there for
    each run that the page draws, at most eight.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    folder : where to; made if it is missing.

    Returns
    -------
    The files, in that order.
    """
    ds = loaded(ds)
    used = [axis.key for axis in AXES if (ds[axis.variable] > 0).any()]
    figures = {"curves": curves_figure(ds, used or [AXES[0].key])}
    for one in activity_of_runs(ds, group_runs(ds)):
        if one.window is not None:
            name = re.sub(r"[^\w.-]+", "-", one.run_id)
            figures[f"activity-{name}"] = activity_figure(one)
    place = check_folder(folder, "figures")
    files = {
        may_write(place / f"{name}.{kind}", "picture", "figures"): (figure, kind)
        for name, figure in figures.items()
        for kind in KINDS
    }
    return [write_whole(path, render(*drawn)) for path, drawn in files.items()]


@literal_text()
def activity_figure(one: RunActivity) -> Figure:
    """Draw staleness, updates of each block, a timeline and shares of one run.

    Parameters
    ----------
    one : from `pipeline.report_asynchrony.activity_of_runs`, with a window.

    Raises
    ------
    ValueError — if nothing is known of its updates.
    """
    from matplotlib.figure import Figure

    found, part = one.activity, one.window
    if found is None or part is None:
        raise ValueError(
            f"`one` must have updates to draw; got {one.run_id} without "
            f"({one.missing or 'not chosen'}). Choose another run."
        )
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    figure.suptitle(one.run_id)
    panels = figure.subplot_mosaic(
        [["staleness", "updates"], ["timeline"] * 2, ["shares"] * 2],
        height_ratios=[2, 1.4, 1],
    )
    _draw_staleness(panels["staleness"], found)
    panels["updates"].bar(
        np.arange(len(found.updates)),
        found.updates,
        color=[_colour(node) for node in range(len(found.updates))],
    )
    panels["updates"].set(xlabel="Block or replica", ylabel="Updates")
    _draw_timeline(panels["timeline"], found, part)
    _draw_shares(panels["shares"], found)
    for panel in panels.values():
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_staleness(panel: Axes, found: Activity) -> None:
    panel.set(xlabel="Staleness (versions)", ylabel="Updates")
    if found.staleness.sum():
        panel.bar(np.arange(len(found.staleness)), found.staleness, color=_colour(0))
    else:
        panel.text(0.5, 0.5, "undefined", ha="center", transform=panel.transAxes)


def _draw_timeline(panel: Axes, found: Activity, part: Window) -> None:
    names = ["scores", *(f"worker {name}" for name in found.workers)]
    panel.broken_barh(_widths(part.scores), (-0.3, 0.6), color=_SCORES, alpha=0.45)
    for row in range(len(found.workers)):
        own = part.row == row
        colours = [_colour(node) for node in part.node[own]]
        if colours:
            spans = _widths(part.updates[own])
            panel.broken_barh(spans, (row + 0.65, 0.7), color=colours)
    _name_rows(panel, names)
    panel.set(xlabel="Time (s)", xlim=(part.start_s, part.end_s))


def _draw_shares(panel: Axes, found: Activity) -> None:
    rows = np.arange(len(found.workers))
    left = np.zeros(len(rows))
    for shares, colour, label in (
        (found.updating, _colour(0), "updating"),
        (found.scoring, _colour(4), "scoring or waiting for a score"),
        (found.idle, _IDLE, "idle"),
    ):
        panel.barh(rows, shares, left=left, color=colour, label=label)
        left = left + shares
    _name_rows(panel, [f"worker {name}" for name in found.workers])
    panel.set(xlabel="Share of time", xlim=(0, 1))
    panel.legend(loc="upper center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.35))


def _name_rows(panel: Axes, names: Sequence[str]) -> None:
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()


def _widths(spans: np.ndarray) -> list[tuple[float, float]]:
    return [(float(a), float(b - a)) for a, b in spans]


def _colour(node: int) -> str:
    return PALETTE[int(node) % len(PALETTE)][0]
