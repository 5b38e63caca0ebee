"""Intervals of a statistic: Student's for few values, a bootstrap for many.

References
----------
Tukey and McLaughlin (1963). Less vulnerable confidence and significance procedures for
location based on a single sample. Sankhyā A 25.
Efron (1987). Better bootstrap confidence intervals. JASA 82. doi:10.2307/2289144.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

__all__ = ["TRIM", "Interval", "bca", "split_strata", "student", "trimmed_student"]

#: Smaller strata are pooled: resampling few values within themselves hides spread.
MIN_STRATUM = 10
N_RESAMPLES = 9999
#: Share that an interquartile mean cuts off at each end.
TRIM = 0.25
_SEED = 20230718

Interval = tuple[float, float, str]  # low, high, method
Statistic = Callable[..., Any]


def student(x: np.ndarray, level: float) -> Interval:
    """Return Student's interval of the mean of x, (n,)."""
    from scipy.stats import t

    half = t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half), "Student t"


def trimmed_student(x: np.ndarray, level: float) -> Interval:
    """Return the interval of the trimmed mean: Student's, with winsorised variance."""
    from scipy.stats.mstats import trimmed_mean_ci

    if int(TRIM * len(x)) == 0:  # nothing is cut off
        return student(x, level)
    low, high = trimmed_mean_ci(x, limits=(TRIM, TRIM), alpha=1 - level)
    return float(low), float(high), "Tukey–McLaughlin t"


def bca(groups: Sequence[np.ndarray], statistic: Statistic, level: float) -> Interval:
    """Return the bias-corrected and accelerated interval of a statistic.

    The percentile interval where that is not defined: the statistic of nearly all
    values does not change when one of them is left out.

    Parameters
    ----------
    groups : the values of each stratum; each is resampled within itself.
    statistic : of all values together, ``statistic(x, axis=axis)``.
    level : of the interval, in (0, 1).
    """
    from scipy.stats import bootstrap

    def pooled(*samples: np.ndarray, axis: int) -> Any:
        return statistic(np.concatenate(samples, axis=axis), axis=axis)

    within = f", {len(groups)} strata" if len(groups) > 1 else ""
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN says the same
            found = bootstrap(
                tuple(groups),
                pooled,
                n_resamples=N_RESAMPLES,
                batch=1000,
                vectorized=True,
                confidence_level=level,
                method=method,
                rng=np.random.default_rng(_SEED),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high), f"{method} bootstrap{within}"


def split_strata(x: np.ndarray, strata: Sequence[Hashable] | None) -> list[np.ndarray]:
    """Return the values of each stratum; those of small ones together, as one."""
    if strata is None:
        return [x]
    if len(strata) != len(x):
        raise ValueError(
            f"`strata` must have one entry a value ({len(x)}); got {len(strata)}. "
            "Name the configuration of each."
        )
    members: dict[Hashable, list[float]] = {}
    for stratum, value in zip(strata, x.tolist(), strict=True):
        members.setdefault(stratum, []).append(value)
    large = [np.array(m) for m in members.values() if len(m) >= MIN_STRATUM]
    rest = [value for m in members.values() if len(m) < MIN_STRATUM for value in m]
    if 0 < len(rest) < MIN_STRATUM and large:
        smallest = min(range(len(large)), key=lambda i: len(large[i]))
        large[smallest] = np.concatenate([large[smallest], rest])
    elif rest:
        large.append(np.array(rest))
    return large
