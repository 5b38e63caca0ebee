"""Means, paired differences and ratios, each with an interval and its method.

Below 20 values the interval is Student's; from 20 on it is a bootstrap, bias-corrected
and accelerated, resampled within strata (`pipeline.intervals`). What these do at small
n is measured in docs/comparing.md.

References
----------
Clopper and Pearson (1934). The use of confidence or fiducial limits. Biometrika 26.
Agarwal et al. (2021). Deep reinforcement learning at the edge of the statistical
precipice. NeurIPS (interquartile mean, stratified bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.estimates import MIN_PAIRS, Estimate
from pipeline.intervals import (
    TRIM,
    Interval,
    bca,
    split_strata,
    student,
    trimmed_student,
)

__all__ = [
    "interquartile_mean",
    "mean",
    "paired_difference",
    "paired_ratio",
    "probability_of_improvement",
]

#: From here on a bootstrap is used.
MIN_BOOTSTRAP = 20


def mean(
    values: Sequence[float] | np.ndarray,
    *,
    strata: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of runs with its interval.

    Parameters
    ----------
    values : (n,) float — finite.
    strata : (n,) — the configuration that each value belongs to.
    level : of the interval, in (0, 1).

    Raises
    ------
    ValueError — if a value is not finite.
    """
    x = _checked("values", values)
    return _estimate("mean", x, _mean, student, strata, level, unit="runs")


def interquartile_mean(
    values: Sequence[float] | np.ndarray,
    *,
    strata: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of the middle half: floor(n / 4) values are cut off at each end.

    Below 20 values with the interval of Tukey and McLaughlin, which is Student's with
    a winsorised variance; below 4 nothing is cut off. Parameters as in `mean`.
    """
    x = _checked("values", values)
    what = "interquartile mean"
    return _estimate(
        what, x, _trimmed_mean, trimmed_student, strata, level, unit="runs"
    )


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    strata: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of first − second over pairs.

    Parameters
    ----------
    first, second : (n,) float — finite; position i of both is one pair.
    strata : (n,) — the configuration that each pair belongs to.
    level : of the interval, in (0, 1).

    Raises
    ------
    ValueError — if a value is not finite, or the lengths differ.
    """
    a, b = _pair(first, second)
    return _estimate("mean difference", a - b, _mean, student, strata, level)


def paired_ratio(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    strata: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the geometric mean of first ÷ second over pairs.

    The interval is that of the mean difference of logarithms, taken back. Parameters
    as in `paired_difference`; all values must be positive.
    """
    a, b = _pair(first, second)
    if len(a) and min(a.min(), b.min()) <= 0:
        raise ValueError(
            f"`first` and `second` must be positive to have a ratio; got "
            f"{min(a.min(), b.min())}. Use `paired_difference`."
        )
    logs = np.log(a) - np.log(b)
    found = _estimate("geometric mean ratio", logs, _mean, student, strata, level)
    estimate, low, high = np.exp([found.estimate, found.low, found.high]).tolist()
    method = f"{found.method} of log-ratios"
    return replace(found, estimate=estimate, low=low, high=high, method=method)


def probability_of_improvement(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    higher_is_better: bool = True,
    level: float = 0.95,
) -> Estimate:
    """Return the share of pairs in which first is better; a tie counts half.

    The interval is the exact one of Clopper and Pearson, at every n; ties count as
    losses at its lower end and as wins at its upper end, so it is never too narrow.
    Parameters as in `paired_difference`.
    """
    from scipy.stats import binomtest

    a, b = _pair(first, second)
    n = len(a)
    gain = a - b if higher_is_better else b - a
    wins, ties = int((gain > 0).sum()), int((gain == 0).sum())
    estimate = (wins + ties / 2) / n if n else math.nan
    low = high = math.nan
    if n >= MIN_PAIRS:
        low = float(binomtest(wins, n).proportion_ci(level, "exact").low)
        high = float(binomtest(wins + ties, n).proportion_ci(level, "exact").high)
    notes = (f"{wins} better, {ties} equal, {n - wins - ties} worse",)
    what = "probability of improvement"
    method = "Clopper–Pearson"
    return Estimate(what, estimate, low, high, method, n, level=level, notes=notes)


def _estimate(
    what: str,
    x: np.ndarray,
    statistic: Callable[..., Any],
    small: Callable[[np.ndarray, float], Interval],
    strata: Sequence[Hashable] | None,
    level: float,
    unit: str = "pairs",
) -> Estimate:
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1); got {level}. Try 0.95.")
    groups = split_strata(x, strata)
    n = len(x)
    value = float(statistic(x)) if n else math.nan
    if n < MIN_PAIRS:
        low, high, method = math.nan, math.nan, f"none below {MIN_PAIRS}"
    elif np.ptp(x) <= 4 * np.finfo(float).eps * np.abs(x).max():
        low, high, method = value, value, "all values are equal"
    elif n < MIN_BOOTSTRAP:
        low, high, method = small(x, level)
    else:
        low, high, method = bca(groups, statistic, level)
    return Estimate(what, value, low, high, method, n, unit, level)


def _mean(x: np.ndarray, axis: int = -1) -> Any:
    return np.mean(x, axis=axis)


def _trimmed_mean(x: np.ndarray, axis: int = -1) -> Any:
    from scipy.stats import trim_mean

    return trim_mean(x, TRIM, axis=axis)


def _pair(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    a, b = _checked("first", first), _checked("second", second)
    if len(a) != len(b):
        raise ValueError(
            f"`first` and `second` must have one entry a pair each; got {len(a)} and "
            f"{len(b)}. Pair them with `pipeline.pairing.pair_runs`."
        )
    return a, b


def _checked(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype="float64")
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(
            f"`{name}` must be one finite number a run; got {x.tolist()}. Leave out "
            "runs without a value, and say so."
        )
    return x
