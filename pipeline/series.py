"""Runs that differ only in their seed, and their mean curves on an equal budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pipeline.estimates import MIN_PAIRS

__all__ = [
    "AXES",
    "CURVES",
    "FINISHED",
    "METRICS",
    "PALETTE",
    "Axis",
    "Curve",
    "Group",
    "group_runs",
    "mean_curve",
    "run_curve",
]


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantity that curves are drawn over or of."""

    key: str
    variable: str
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity against a budget; ``stepped``: a value holds until the next one.

    ``half`` is half of a 95 % interval, (n,); None where there is none.
    """

    x: np.ndarray  # (n,) non-decreasing
    y: np.ndarray  # (n,)
    stepped: bool = False
    half: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ only in their seed.

    ``colour`` indexes the palette, one a pair of algorithm and mode; ``dash`` counts
    the groups that share a colour.
    """

    label: str
    runs: tuple[int, ...]
    colour: int
    dash: int


AXES = (
    Axis("update", "step", "Updates per node"),
    Axis("samples", "n_samples", "Samples seen"),
    Axis("wall_time", "wall_time_s", "Wall time (s)"),
    Axis("loss_values", "n_loss_evals", "Loss values"),
    Axis("bytes", "bytes_moved", "Bytes moved"),
)
METRICS = (
    Axis("test_accuracy", "test_accuracy", "Test accuracy"),
    Axis("train_loss", "train_loss", "Training loss"),
)
#: Variables that curves are drawn from.
CURVES = tuple(axis.variable for axis in (*AXES, *METRICS))
#: Colours (on white, on black) that stay apart under colour-vision deficiencies, after
#: Okabe & Ito (2008), Color Universal Design; the pale ones are darkened on white.
PALETTE = (
    ("#0072B2", "#56B4E9"),
    ("#D55E00", "#FF8C42"),
    ("#00835F", "#2FCFA0"),
    ("#B84E92", "#E8A0CC"),
    ("#9A6B00", "#F2C94C"),
    ("#4B5563", "#C3CBD6"),
    ("#5B3FA8", "#A892F0"),
    ("#8C2D19", "#E0775F"),
)
#: The status of a run that used its whole budget.
FINISHED = "complete"
_IDENTITY = ("dataset", "model", "partition")
_MAX_GRID = 400


_NO_DELAY = "no delay"


def group_runs(ds: xr.Dataset) -> tuple[Group, ...]:
    """Split the runs of a combined dataset into groups that differ only in their seed.

    The label is algorithm and mode, and then what tells apart groups of the same two:
    data set, model, partition, then settings, each only where those before do not.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.

    Returns
    -------
    Groups ordered by algorithm, mode and first run; every run is in exactly one.
    """
    fields = (*_IDENTITY, *ds.attrs.get("config_varies", ()))
    values = {name: ds[name].values.tolist() for name in ("algorithm", "mode", *fields)}
    families: dict[tuple[str, str], list[int]] = {}
    for run in range(ds.sizes["run"]):
        families.setdefault((values["algorithm"][run], values["mode"][run]), []).append(
            run
        )
    groups: list[Group] = []
    for colour, ((algorithm, mode), runs) in enumerate(sorted(families.items())):
        differing = _telling(runs, fields, values)
        members: dict[tuple[str, ...], list[int]] = {}
        for run in runs:
            key = tuple(_label(name, values[name][run]) for name in differing)
            members.setdefault(key, []).append(run)
        ordered = sorted(members.items(), key=lambda item: _NO_DELAY not in item[0])
        for dash, (key, group) in enumerate(ordered):
            label = " · ".join((f"{algorithm} {mode}", *key))
            groups.append(Group(label, tuple(group), colour, dash))
    return tuple(groups)


def _telling(
    runs: Sequence[int], fields: Sequence[str], values: Mapping[str, Sequence[object]]
) -> list[str]:
    """The fields that tell runs apart which the fields before them do not."""
    known = [""] * len(runs)
    telling = []
    for name in fields:
        finer = [
            f"{so_far}|{values[name][run]!r}"
            for so_far, run in zip(known, runs, strict=True)
        ]
        if len(set(finer)) > len(set(known)):
            known = finer
            telling.append(name)
    return telling


def run_curve(ds: xr.Dataset, run: int, axis: Axis, metric: Axis) -> Curve:
    """Return one run's metric over one axis, where both are finite.

    Empty where the run does not use that budget at all: back-propagation scores no loss
    values, so it has no curve over them.
    """
    n_evals = int(ds["n_evals"].values[run])
    x = np.asarray(ds[axis.variable].values[run, :n_evals], dtype="float64")
    y = np.asarray(ds[metric.variable].values[run, :n_evals], dtype="float64")
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not (x > 0).any():
        return Curve(x[:0], y[:0])
    order = np.argsort(x, kind="stable")
    return Curve(x[order], y[order])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean over the seeds' curves, where every one of them has a value.

    Curves on the same grid are averaged point by point. Otherwise the mean at a budget
    is that of each curve's last value at or before it (nothing looks ahead), from the
    largest first to the smallest last budget. From three seeds on there is a pointwise
    95 % interval of the mean, Student's t.
    """
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return Curve(np.empty(0), np.empty(0))
    first = curves[0].x
    if all(np.array_equal(curve.x, first) for curve in curves):
        return _mean_with_interval(first, [curve.y for curve in curves], stepped=False)
    low = max(curve.x[0] for curve in curves)
    high = min(curve.x[-1] for curve in curves)
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    if len(grid) > _MAX_GRID:
        grid = grid[
            np.unique(np.linspace(0, len(grid) - 1, _MAX_GRID).round().astype(int))
        ]
    held = [c.y[np.searchsorted(c.x, grid, side="right") - 1] for c in curves]
    return _mean_with_interval(grid, held, stepped=True)


def _mean_with_interval(
    x: np.ndarray, values: Sequence[np.ndarray], *, stepped: bool
) -> Curve:
    from scipy.stats import t

    y, n = np.asarray(values), len(values)
    half = None
    if n >= MIN_PAIRS:
        half = t.ppf(0.975, n - 1) * y.std(axis=0, ddof=1) / np.sqrt(n)
    return Curve(x, y.mean(axis=0), stepped, half)


def _label(name: str, value: object) -> str:
    if name in _IDENTITY:
        return str(value)
    section, _, short = name.removeprefix("config.").rpartition(".")
    if section == "delays":
        return _NO_DELAY if value != value else f"delay of {short}: {value:g} s"
    if not isinstance(value, float):
        return f"{short}={value}"
    return f"no {short}" if np.isnan(value) else f"{short}={value:g}"
