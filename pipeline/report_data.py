"""What the report's charts draw, as plain lists and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from pipeline.series import (
    AXES,
    METRICS,
    Axis,
    Curve,
    Group,
    mean_curve,
    run_curve,
)

__all__ = ["chart_data"]

#: Points of all thin lines together, which bounds the size of the page.
_MAX_POINTS = 40_000
_MAX_POINTS_PER_LINE = 250


def chart_data(ds: xr.Dataset, groups: Sequence[Group]) -> dict[str, Any]:
    """Return axes, metrics, groups, curves and alternative texts, ready for JSON.

    Lines are thinned to a bounded number of points; their last point is always kept. A
    run that does not use a budget has ``None`` in place of its values on that axis.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    groups : from `pipeline.series.group_runs`.
    """
    axes = [axis for axis in AXES if (ds[axis.variable] > 0).any()]
    axes = axes or [AXES[0]]
    limit = int(np.clip(_MAX_POINTS // ds.sizes["run"], 12, _MAX_POINTS_PER_LINE))
    means = {
        (index, metric.key, axis.key): mean_curve(
            [run_curve(ds, run, axis, metric) for run in group.runs]
        )
        for index, group in enumerate(groups)
        for metric in METRICS
        for axis in axes
    }
    return {
        "axes": [{"key": axis.key, "label": axis.label} for axis in axes],
        "metrics": [{"key": metric.key, "label": metric.label} for metric in METRICS],
        "groups": [
            {
                "label": group.label,
                "colour": group.colour,
                "dash": group.dash,
                "runs": [_run_lines(ds, run, axes, limit) for run in group.runs],
                "mean": {
                    metric.key: {
                        axis.key: _mean_line(means[index, metric.key, axis.key])
                        for axis in axes
                    }
                    for metric in METRICS
                },
            }
            for index, group in enumerate(groups)
        ],
        "alts": {
            metric.key: {
                axis.key: _alternative_text(
                    metric,
                    axis,
                    [
                        (group, means[index, metric.key, axis.key])
                        for index, group in enumerate(groups)
                    ],
                )
                for axis in axes
            }
            for metric in METRICS
        },
    }


def _run_lines(
    ds: xr.Dataset, run: int, axes: Sequence[Axis], limit: int
) -> dict[str, Any]:
    n_evals = int(ds["n_evals"].values[run])
    kept = _thinned(n_evals, limit)
    xs = {axis.key: ds[axis.variable].values[run, kept] for axis in axes}
    return {
        "id": str(ds["run_id"].values[run]),
        "x": {key: _numbers(x) if (x > 0).any() else None for key, x in xs.items()},
        "y": {
            metric.key: _numbers(ds[metric.variable].values[run, kept])
            for metric in METRICS
        },
    }


def _mean_line(curve: Curve) -> dict[str, Any]:
    kept = _thinned(len(curve.x), _MAX_POINTS_PER_LINE)
    return {
        "x": _numbers(curve.x[kept]),
        "y": _numbers(curve.y[kept]),
        "half": None if curve.half is None else _numbers(curve.half[kept]),
        "stepped": curve.stepped,
    }


def _thinned(length: int, limit: int) -> np.ndarray:
    """Return at most ``limit`` evenly spaced positions with both ends, (≤ limit,)."""
    if length <= limit:
        return np.arange(length)
    return np.unique(np.linspace(0, length - 1, limit).round().astype(int))


def _numbers(values: np.ndarray) -> list[float | None]:
    return [
        float(f"{value:.5g}") if np.isfinite(value) else None
        for value in values.tolist()
    ]


def _alternative_text(
    metric: Axis, axis: Axis, curves: Sequence[tuple[Group, Curve]]
) -> str:
    """Return what a reader who cannot see the chart should know of it."""
    ends = [
        f"{group.label} goes from {curve.y[0]:.3g} to {curve.y[-1]:.3g} "
        f"at {curve.x[-1]:,.5g}"
        for group, curve in curves
        if len(curve.x)
    ]
    return f"{metric.label} against {axis.label.lower()}. " + (
        "Means over seeds: " + "; ".join(ends) + "." if ends else "No values."
    )
