"""Figures about combined runs on their way to a target, over common seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from pipeline.estimates import Estimate, LeftOut
from pipeline.pairing import Pairs, Side, runs_of
from pipeline.targets import (
    first_reached,
    median_time,
    restricted_difference,
    time_ratio,
)

__all__ = ["saved_to_target", "speed_to_target", "time_to_target"]


def time_to_target(
    ds: xr.Dataset, runs: Side, metric: str, target: float, budget: str = "wall_time"
) -> Estimate:
    """Return the median budget to a target over runs; those that never do count.

    Parameters
    ----------
    runs : ``{"mode": "async"}``, or positions of runs.
    metric, target, budget : as in `pipeline.targets.first_reached`.

    Returns
    -------
    Estimate — by `pipeline.targets.median_time`; ``left_out`` names the runs that do
    not use the budget or have no such metric.
    """
    reach = first_reached(ds, metric, target, budget)
    chosen = runs_of(ds, runs)
    usable = [run for run in chosen if not np.isnan(_watched(reach, run))]
    left_out = tuple(_unusable(ds, run) for run in chosen if run not in usable)
    return replace(median_time(reach, usable), left_out=left_out)


def speed_to_target(
    ds: xr.Dataset, pairs: Pairs, metric: str, target: float, budget: str = "wall_time"
) -> Estimate:
    """Return which part of second's budget first takes to a target, over pairs.

    As `time_to_target`, by `pipeline.targets.time_ratio`: below 1, first is faster.
    """
    reach, usable, left_out = _usable_pairs(ds, pairs, metric, target, budget)
    first, second = ([side[i] for i in usable] for side in (pairs.first, pairs.second))
    found = time_ratio(reach, first, second)
    return replace(found, what=f"{pairs.name}: {found.what}", left_out=left_out)


def saved_to_target(
    ds: xr.Dataset, pairs: Pairs, metric: str, target: float, budget: str = "wall_time"
) -> Estimate:
    """Return first − second of the budget to a target, cut where watching ended.

    As `speed_to_target`, by `pipeline.targets.restricted_difference`.
    """
    reach, usable, left_out = _usable_pairs(ds, pairs, metric, target, budget)
    first, second = ([side[i] for i in usable] for side in (pairs.first, pairs.second))
    found = restricted_difference(reach, first, second)
    return replace(found, what=f"{pairs.name}: {found.what}", left_out=left_out)


def _usable_pairs(
    ds: xr.Dataset, pairs: Pairs, metric: str, target: float, budget: str
) -> tuple[xr.Dataset, list[int], tuple[LeftOut, ...]]:
    reach = first_reached(ds, metric, target, budget)
    bad = {
        run for run in (*pairs.first, *pairs.second) if np.isnan(_watched(reach, run))
    }
    usable = [
        i
        for i, pair in enumerate(zip(pairs.first, pairs.second, strict=True))
        if not bad & {*pair}
    ]
    why = [_unusable(ds, run) for run in sorted(bad)]
    return reach, usable, (*pairs.left_out, *why)


def _watched(reach: xr.Dataset, run: int) -> float:
    return float(reach["watched_until"].values[run])


def _unusable(ds: xr.Dataset, run: int) -> LeftOut:
    name = str(ds["run_id"].values[run])
    return LeftOut(name, "does not use the budget, or was not evaluated so")
