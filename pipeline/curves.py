"""Static pictures of the learning curves of compared runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from pipeline.compare import loaded
from pipeline.outputs import may_write
from pipeline.series import (
    AXES,
    CURVES,
    METRICS,
    PALETTE,
    Axis,
    Group,
    group_runs,
    mean_curve,
    run_curve,
)
from pipeline.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves_figure", "curves_png", "curves_svg", "render", "write_curves"]

DEFAULT_AXES = ("update", "samples", "wall_time")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = "os^Dv*PX"


@contextlib.contextmanager
def literal_text() -> Iterator[None]:
    """Take a `$` in what is drawn for a `$`, not for the start of a formula."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        yield


@literal_text()
def curves_figure(ds: xr.Dataset, axes: Sequence[str] = DEFAULT_AXES) -> Figure:
    """Draw test accuracy (above) and training loss (below) over each budget axis.

    One colour a pair of algorithm and mode. Thick lines are means over seeds, with a
    95 % band from three on; thin lines are the seeds of methods that have fewer.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    axes : of ``update``, ``samples``, ``wall_time``, ``loss_values``,
        ``bytes``: one column each.

    Raises
    ------
    ValueError — if an axis is unknown or none is named.
    """
    from matplotlib.figure import Figure

    columns = [_axis(key) for key in axes]
    if not columns:
        raise ValueError(
            "`axes` must name at least one budget; got none. Try ('update',)."
        )
    ds = loaded(ds, CURVES)
    groups = group_runs(ds)
    figure = Figure(figsize=(1.2 + 3.9 * len(columns), 6.6), layout="constrained")
    panels = figure.subplots(len(METRICS), len(columns), squeeze=False, sharey="row")
    for row, metric in zip(panels, METRICS, strict=True):
        for panel, axis in zip(row, columns, strict=True):
            _draw_panel(panel, ds, groups, axis, metric)
        row[0].set_ylabel(metric.label)
        _fit_to_lines(row, metric)
    for panel, axis in zip(panels[-1], columns, strict=True):
        panel.set_xlabel(axis.label)
    _add_legend(figure, groups)
    return figure


def curves_png(
    ds: xr.Dataset, axes: Sequence[str] = DEFAULT_AXES, *, dots_per_inch: int = 110
) -> bytes:
    """Return the figure of `curves_figure` as a PNG."""
    return render(curves_figure(ds, axes), "png", dots_per_inch)


def curves_svg(ds: xr.Dataset, axes: Sequence[str] = DEFAULT_AXES) -> str:
    """Return the figure of `curves_figure` as SVG; equal datasets give equal text."""
    return render(curves_figure(ds, axes), "svg", 72).decode("utf-8")


def write_curves(
    ds: xr.Dataset, path: Path, axes: Sequence[str] = DEFAULT_AXES
) -> Path:
    """Write the figure, whole or not at all, in the format that ``path`` ends with.

    Raises
    ------
    ValueError — if ``path`` ends with neither ``.png`` nor ``.svg``.
    """
    path = may_write(path, "picture", "path")
    if path.suffix == ".png":
        return write_whole(path, curves_png(ds, axes))
    return write_whole(path, curves_svg(ds, axes))


def _axis(key: str) -> Axis:
    for axis in AXES:
        if axis.key == key:
            return axis
    known = ", ".join(axis.key for axis in AXES)
    raise ValueError(f"`axes` must be of {known}; got {key!r}. Pick one of them.")


def _draw_panel(
    panel: Axes, ds: xr.Dataset, groups: Sequence[Group], axis: Axis, metric: Axis
) -> None:
    from matplotlib.ticker import EngFormatter

    for group in groups:
        colour = PALETTE[group.colour % len(PALETTE)][0]
        curves = [run_curve(ds, run, axis, metric) for run in group.runs]
        mean = mean_curve(curves)
        style: Literal["steps-post", "default"]
        style = "steps-post" if mean.stepped else "default"
        if mean.half is not None:
            panel.fill_between(
                mean.x,
                mean.y - mean.half,
                mean.y + mean.half,
                color=colour,
                alpha=0.16,
                linewidth=0,
                step="post" if mean.stepped else None,
            )
        for curve in curves if mean.half is None else ():
            panel.plot(
                curve.x,
                curve.y,
                color=colour,
                linewidth=0.7,
                alpha=0.45,
                drawstyle=style,
            )
        panel.plot(
            mean.x,
            mean.y,
            color=colour,
            linewidth=2.0,
            linestyle=_DASHES[group.dash % len(_DASHES)],
            drawstyle=style,
            marker=_MARKERS[group.colour % len(_MARKERS)],
            markevery=[len(mean.x) - 1] if len(mean.x) else [],
            markersize=7,
        )
    if axis.key != "wall_time":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.grid(color="#D8DDE3", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _fit_to_lines(row: Sequence[Axes], metric: Axis) -> None:
    """Let lines, not the bands around them, say what a row of panels shows."""
    found = [
        np.asarray(line.get_ydata(), dtype="float64")
        for panel in row
        for line in panel.lines
    ]
    values = np.concatenate(found) if found else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return
    room = 0.05 * (np.ptp(values) or 1.0)
    low, high = values.min() - room, values.max() + room
    if "accuracy" in metric.variable:
        low, high = max(low, 0.0), min(high, 1.0 + room)
    row[0].set_ylim(low, high)


def _add_legend(figure: Figure, groups: Sequence[Group]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=PALETTE[group.colour % len(PALETTE)][0],
            linewidth=2.0,
            linestyle=_DASHES[group.dash % len(_DASHES)],
            marker=_MARKERS[group.colour % len(_MARKERS)],
            label=f"{group.label} (n = {len(group.runs)})",
        )
        for group in groups
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(3, len(handles)),
        frameon=False,
    )


def render(figure: Figure, kind: str, dots_per_inch: int = 110) -> bytes:
    """Return a figure as ``png`` or ``svg``; equal figures give equal bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with literal_text(), rc_context({"svg.hashsalt": "ndcao"}):  # equal data, bytes
        # Says whose picture it is: `pipeline.outputs` replaces no other.
        svg: dict[str, Any] = {"Date": None, "Creator": "ndcao"}
        metadata = svg if kind == "svg" else {"Source": "ndcao"}
        figure.savefig(buffer, format=kind, dpi=dots_per_inch, metadata=metadata)
    return buffer.getvalue()
