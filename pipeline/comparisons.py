"""Figures about combined runs at equal budgets, over common seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from pipeline.alignment import State, align, budget_named, last_budgets
from pipeline.estimates import Estimate, LeftOut
from pipeline.pairing import Pairs, Side, runs_of
from pipeline.schema import VARIABLES
from pipeline.statistics import (
    interquartile_mean,
    mean,
    paired_difference,
    paired_ratio,
    probability_of_improvement,
)

__all__ = ["common_budget", "difference_at", "improvement_at", "level_at", "ratio_at"]


def difference_at(
    ds: xr.Dataset,
    pairs: Pairs,
    metric: str = "test_accuracy",
    budget: str = "update",
    at: float | None = None,
) -> Estimate:
    """Return first − second of a metric at an equal budget, over pairs of runs.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    pairs : from `pipeline.pairing.pair_runs`.
    metric, budget : as in `pipeline.alignment.align`.
    at : the budget; the default is the largest that every paired run which used its
        own budget has reached.

    Returns
    -------
    Estimate — its ``what`` names metric and budget, ``left_out`` the runs and seeds
    that it could not use, ``notes`` how many runs had ended by then.
    """
    values = _Values(ds, pairs, metric, budget, at)
    found = paired_difference(*values.both, strata=values.strata)
    return values.describe(found, "difference of")


def ratio_at(
    ds: xr.Dataset,
    pairs: Pairs,
    metric: str = "wall_time_s",
    budget: str = "update",
    at: float | None = None,
) -> Estimate:
    """Return first ÷ second of a metric at an equal budget, over pairs of runs.

    As `difference_at`, for what is positive: times, bytes, losses.
    """
    values = _Values(ds, pairs, metric, budget, at)
    found = paired_ratio(*values.both, strata=values.strata)
    return values.describe(found, "ratio of")


def improvement_at(
    ds: xr.Dataset,
    pairs: Pairs,
    metric: str = "test_accuracy",
    budget: str = "update",
    at: float | None = None,
) -> Estimate:
    """Return in which share of pairs first is better than second, as `difference_at`.

    More is better of an accuracy, less of all else.
    """
    values = _Values(ds, pairs, metric, budget, at)
    higher = metric.endswith("accuracy")
    found = probability_of_improvement(*values.both, higher_is_better=higher)
    return values.describe(found, "probability of a better")


def level_at(
    ds: xr.Dataset,
    runs: Side,
    metric: str = "test_accuracy",
    budget: str = "update",
    at: float | None = None,
    *,
    interquartile: bool = False,
) -> Estimate:
    """Return the mean, or the interquartile mean, of runs at an equal budget.

    Parameters
    ----------
    runs : ``{"mode": "async"}``, or positions of runs.
    interquartile : the mean of the middle half instead.

    The others, and what is returned, are as in `difference_at`.
    """
    chosen = runs_of(ds, runs)
    at = common_budget(ds, chosen, budget) if at is None else at
    values, states = _values_at(ds, chosen, metric, budget, at)
    known = np.isfinite(values)
    left_out = tuple(
        _why(ds, run, state, metric)
        for run, state in zip(chosen, states, strict=True)
        if not np.isfinite(values[chosen.index(run)])
    )
    found = (interquartile_mean if interquartile else mean)(values[known])
    what = f"{found.what} of {_named(metric, budget, at)}"
    notes = _carried(states[known])
    return replace(found, what=what, left_out=left_out, notes=notes)


class _Values:
    """The values of both runs of every pair at one budget, and which are missing."""

    def __init__(
        self, ds: xr.Dataset, pairs: Pairs, metric: str, budget: str, at: float | None
    ) -> None:
        if at is None:
            at = common_budget(ds, (*pairs.first, *pairs.second), budget)
        self.name = f"{_named(metric, budget, at)}, {pairs.name}"
        first, states = _values_at(ds, pairs.first, metric, budget, at)
        second, others = _values_at(ds, pairs.second, metric, budget, at)
        known = np.isfinite(first) & np.isfinite(second)
        self.both = first[known], second[known]
        self.strata = [s for s, ok in zip(pairs.strata, known, strict=True) if ok]
        self.notes = _carried(np.concatenate([states[known], others[known]]))
        self.left_out = [*pairs.left_out]
        for runs, values, ends in (
            (pairs.first, first, states),
            (pairs.second, second, others),
        ):
            self.left_out += [
                _why(ds, runs[i], ends[i], metric)
                for i in np.flatnonzero(~np.isfinite(values))
            ]

    def describe(self, found: Estimate, kind: str) -> Estimate:
        return replace(
            found,
            what=f"{kind} {self.name}",
            left_out=tuple(self.left_out),
            notes=(*found.notes, *self.notes),
        )


def _values_at(
    ds: xr.Dataset, runs: Sequence[int], metric: str, budget: str, at: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs' values and states at a budget, each (n,)."""
    if not len(runs) or math.isnan(at):
        return np.full(len(runs), np.nan), np.full(len(runs), State.UNUSED)
    aligned = align(ds.isel(run=list(runs)), metric, budget, at)
    return aligned[metric].values[:, 0], aligned["state"].values[:, 0]


def common_budget(ds: xr.Dataset, runs: Sequence[int], budget: str) -> float:
    """Return the largest budget that all runs reached which used their own one up.

    NaN if there is none such.
    """
    if not len(runs):
        return math.nan
    part = ds.isel(run=list(runs))
    ends = last_budgets(part, budget)
    planned = ends[(part["status"].values == "complete") & np.isfinite(ends)]
    return float(planned.min()) if len(planned) else math.nan


def _why(ds: xr.Dataset, run: int, state: int, metric: str) -> LeftOut:
    reasons = {
        State.WITHIN: f"no finite {metric} there",
        State.CARRIED: f"no finite {metric} at its end",
        State.BEFORE: "not evaluated by then",
        State.ENDED_EARLY: f"ended before: {ds['stop_reason'].values[run]}",
        State.UNUSED: "does not use that budget",
    }
    return LeftOut(str(ds["run_id"].values[run]), reasons[State(state)])


def _carried(states: np.ndarray) -> tuple[str, ...]:
    n = int((states == State.CARRIED).sum())
    if not n:
        return ()
    return (f"{n} of {len(states)} runs had ended by then: their last values",)


def _named(metric: str, budget: str, at: float) -> str:
    label = budget_named(budget).label
    return f"{VARIABLES[metric].long_name} at {label.lower()} = {at:.6g}"
