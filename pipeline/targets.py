"""When runs reach a target, and how much sooner; runs that never do stay in.

A run that ends below its target is *censored*: it would have taken longer than it was
watched. A run that diverged would never have reached it, however long it is watched.

References
----------
Kaplan and Meier (1958). Nonparametric estimation from incomplete observations. JASA 53.
Brookmeyer and Crowley (1982). A confidence interval for the median survival time.
Biometrics 38.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from pipeline.alignment import budget_named, evaluations
from pipeline.estimates import MIN_PAIRS, Estimate
from pipeline.schema import VARIABLES
from pipeline.statistics import paired_difference, paired_ratio

__all__ = ["first_reached", "median_time", "restricted_difference", "time_ratio"]

#: Below this the interval of a Kaplan-Meier median covers too little.
MIN_MEDIAN = 5
METRICS = ("val_accuracy", "val_loss", "train_loss")


def first_reached(
    ds: xr.Dataset, metric: str, target: float, budget: str = "update"
) -> xr.Dataset:
    """Return the budget at which each run was first seen to have reached a target.

    That is the first evaluation at which the accuracy is at least, or the loss at
    most, the target; the run may have reached it since the evaluation before.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    metric : ``val_accuracy``, ``val_loss`` or ``train_loss``. Test data are no target.
    target : in the metric's units.
    budget : as in `pipeline.alignment.align`.

    Returns
    -------
    Dataset over run: ``reached_at``, NaN for a run that did not; ``watched_until``, the
    budget of its last evaluation, ∞ for a run that diverged, NaN for one that does not
    use the budget or has no such metric.

    Raises
    ------
    ValueError — if the metric is no target or the target is not finite.
    """
    if metric not in METRICS:
        raise ValueError(
            f"`metric` must be of {', '.join(METRICS)} to be a target; got {metric!r}. "
            "Test data are for reading results at equal budgets."
        )
    if not math.isfinite(target):
        raise ValueError(f"`target` must be finite; got {target}. Write a number.")
    sign = 1 if metric.endswith("accuracy") else -1
    reached = np.full(ds.sizes["run"], np.nan)
    watched = np.full(ds.sizes["run"], np.nan)
    for run, (x, y) in enumerate(evaluations(ds, metric, budget)):
        if len(x) and not np.isnan(y).all():
            hits = np.flatnonzero(sign * y >= sign * target)
            diverged = ds["status"].values[run] == "diverged"
            watched[run] = np.inf if diverged and not len(hits) else x[-1]
            reached[run] = x[hits[0]] if len(hits) else np.nan
    axis = budget_named(budget)
    units = VARIABLES[axis.variable].units
    text = f"{VARIABLES[metric].long_name} {'≥' if sign > 0 else '≤'} {target:g}"
    names = {"reached_at": reached, "watched_until": watched}
    long_names = (f"{axis.label} to {text}", f"{axis.label} watched")
    out = ds.drop_vars(ds.data_vars).assign(
        {
            name: ("run", values, {"units": units, "long_name": long_name})
            for (name, values), long_name in zip(names.items(), long_names, strict=True)
        }
    )
    return out.assign_attrs(title=text, target=target, metric=metric, budget=budget)


def median_time(
    reach: xr.Dataset, runs: Sequence[int], *, level: float = 0.95
) -> Estimate:
    """Return the Kaplan–Meier median of the budget to a target over runs.

    The interval is that of Brookmeyer and Crowley with log–log limits, from 5 runs on;
    ∞ stands for "later than any run was watched".

    Parameters
    ----------
    reach : from `first_reached`.
    runs : positions; those with nothing to watch (NaN) may not be among them.
    level : of the interval, in (0, 1).
    """
    from scipy.stats import CensoredData, ecdf

    low_time, high_time = _bounds(reach, runs)
    n = len(low_time)
    notes = (_counted(high_time, "runs"),)
    what, method = _time_name(reach, "median"), "Kaplan–Meier, Brookmeyer–Crowley"
    if n < MIN_PAIRS:
        nan = math.nan
        return Estimate(what, nan, nan, nan, method, n, "runs", level, notes=notes)
    # Beyond all others, which is what counts of the time of a run that never gets there
    never = 2 * np.max(low_time, initial=1.0, where=np.isfinite(low_time))
    times = np.where(np.isfinite(low_time), low_time, never)
    survival = ecdf(CensoredData.right_censored(times, np.isinf(high_time))).sf
    median = _first_half(survival)
    if n < MIN_MEDIAN:
        method += f": no interval below {MIN_MEDIAN} runs"
        low = high = math.nan
    else:
        with warnings.catch_warnings():  # limits are NaN where nobody or all survive
            warnings.simplefilter("ignore", RuntimeWarning)
            limits = survival.confidence_interval(level, method="log-log")
        low, high = _first_half(limits.low), _first_half(limits.high)
    return Estimate(what, median, low, high, method, n, "runs", level, notes=notes)


def time_ratio(
    reach: xr.Dataset,
    first: Sequence[int],
    second: Sequence[int],
    *,
    level: float = 0.95,
) -> Estimate:
    """Return which part of second's budget first takes to the target, over pairs.

    Where all runs reach it: the geometric mean ratio of `paired_ratio`. Otherwise the
    median ratio with the interval of the sign test, in which a pair with a censored run
    counts with the bounds that it sets: "more than", "less than" or anything.

    Parameters
    ----------
    reach : from `first_reached`.
    first, second : positions of runs; position i of both is one pair.
    level : of the interval, in (0, 1).

    Raises
    ------
    ValueError — if a run had reached the target before it used any budget.
    """
    (a_low, a_high), (b_low, b_high) = _bounds(reach, first), _bounds(reach, second)
    times = np.concatenate([a_low, b_low])
    if (times == 0).any():
        raise ValueError(
            f"`target` must not be reached before any budget is used; got "
            f"{reach.attrs['target']:g}, where a run starts. Choose a harder one."
        )
    notes = (_counted(a_high, "first"), _counted(b_high, "second"))
    if np.isfinite(np.concatenate([a_high, b_high])).all():
        found = paired_ratio(a_low, b_low, level=level)
    else:
        with np.errstate(invalid="ignore"):  # ∞ ÷ ∞: nothing is known
            low = np.nan_to_num(a_low / b_high, nan=0.0, posinf=np.inf)
            high = np.nan_to_num(a_high / b_low, nan=np.inf, posinf=np.inf)
        found = _sign_interval(low, high, level)
    return replace(found, what=_time_name(reach, "ratio"), notes=notes)


def restricted_difference(
    reach: xr.Dataset,
    first: Sequence[int],
    second: Sequence[int],
    *,
    level: float = 0.95,
) -> Estimate:
    """Return the mean paired difference of the budget to the target, cut at a horizon.

    The horizon is the largest budget to which all of these runs were watched, so no
    time below it is unknown; a run that has not reached the target counts with the
    horizon. It is smaller than the difference of whole times, and never guesses.
    Parameters as in `time_ratio`.
    """
    low = np.concatenate([_bounds(reach, first)[0], _bounds(reach, second)[0]])
    high = np.concatenate([_bounds(reach, first)[1], _bounds(reach, second)[1]])
    open_ended = low[np.isinf(high)]
    horizon = min(open_ended, default=math.inf)
    if math.isinf(horizon):
        horizon = np.max(low, initial=0.0, where=np.isfinite(low))
    cut = np.minimum(low, horizon)
    n = len(first)
    found = paired_difference(cut[:n], cut[n:], level=level)
    what = _time_name(reach, f"mean difference, cut at {horizon:g}, of")
    notes = (_counted(high[:n], "first"), _counted(high[n:], "second"))
    return replace(found, what=what, notes=notes)


def _bounds(reach: xr.Dataset, runs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the most that each run's time to the target can be."""
    reached = reach["reached_at"].values[list(runs)]
    watched = reach["watched_until"].values[list(runs)]
    if np.isnan(watched).any():
        names = reach["run_id"].values[list(runs)][np.isnan(watched)].tolist()
        raise ValueError(
            f"`runs` must use the budget and have the metric; got {names}. "
            "Leave them out, and say so."
        )
    unseen = np.isnan(reached)
    return np.where(unseen, watched, reached), np.where(unseen, np.inf, reached)


def _sign_interval(low: np.ndarray, high: np.ndarray, level: float) -> Estimate:
    """Return the median of values known only to lie in [low, high], each (n,)."""
    from scipy.stats import binom

    n = len(low)
    name = "median ratio"
    if n < MIN_PAIRS:
        none = f"none below {MIN_PAIRS}"
        return Estimate(name, math.nan, math.nan, math.nan, none, n, level=level)
    ranks = np.arange(n // 2 + 1)
    inside = ranks[binom.cdf(ranks - 1, n, 0.5) <= (1 - level) / 2]
    rank = int(inside[-1])  # from the outside; 0: n is too small for any end
    bottom = float(np.sort(low)[rank - 1]) if rank else 0.0
    top = float(np.sort(high)[n - rank]) if rank else math.inf
    least, most = float(np.median(low)), float(np.median(high))
    median = least if least == most else math.nan
    method = "sign test of the median, censored pairs as bounds"
    return Estimate(name, median, bottom, top, method, n, level=level)


def _first_half(survival: Any) -> float:
    """Return where a survival function first is at most one half, ∞ if nowhere."""
    hits = np.flatnonzero(survival.probabilities <= 0.5)
    return float(survival.quantiles[hits[0]]) if len(hits) else math.inf


def _counted(most: np.ndarray, who: str) -> str:
    return f"{int(np.isfinite(most).sum())} of {len(most)} {who} reached it"


def _time_name(reach: xr.Dataset, kind: str) -> str:
    return f"{kind} {reach['reached_at'].attrs['long_name'].lower()}"
