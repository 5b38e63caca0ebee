"""Which target the time of compared runs is taken to; never one on test data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pipeline.alignment import evaluations
from pipeline.series import FINISHED
from pipeline.targets import METRICS

__all__ = ["Aim", "aim_of"]


@dataclass(frozen=True, slots=True)
class Aim:
    """A target and why it is this one; NaN with the reason why there is none."""

    metric: str
    target: float
    rule: str


def aim_of(
    ds: xr.Dataset, runs: Sequence[int], target: Mapping[str, float] | None = None
) -> Aim:
    """Return the target that is given, or the hardest that all of these runs reach.

    Of the runs that used their own budget up: the largest validation accuracy that
    every one of them shows at some evaluation, rounded down to hundredths; without a
    validation set the smallest training loss, rounded up to two digits. None where a
    run starts there already.

    Raises
    ------
    ValueError — if ``target`` names no metric of `pipeline.targets.METRICS`.
    """
    given = {k: v for k, v in (target or {}).items() if v is not None}
    if given:
        metric = next((m for m in METRICS if m in given), None)
        if metric is None:
            raise ValueError(
                f"`target` must set {', '.join(METRICS)}; got {sorted(given)}. "
                "Test data are no target."
            )
        return Aim(metric, float(given[metric]), "given")
    ended = ds["status"].values[list(runs)] == FINISHED
    chosen = [run for run, ok in zip(runs, ended, strict=True) if ok]
    if not chosen:
        return Aim(METRICS[0], math.nan, "no run used its own budget up")
    part = ds.isel(run=chosen)
    for metric, sign, words in (
        ("val_accuracy", 1, "the largest hundredth of validation accuracy"),
        ("train_loss", -1, "the smallest training loss of two digits"),
    ):
        curves = [y[np.isfinite(y)] for _, y in evaluations(part, metric, "wall_time")]
        if not all(len(y) for y in curves):
            continue
        value = _rounded(sign * min(float((sign * y).max()) for y in curves), sign)
        if any(sign * y[0] >= sign * value for y in curves):
            return Aim(metric, math.nan, "a run starts where all of them get to")
        rule = f"{words} that each of these runs reaches which used its own budget up"
        return Aim(metric, value, rule)
    return Aim(METRICS[0], math.nan, "no metric was evaluated in all runs")


def _rounded(value: float, sign: int) -> float:
    if sign > 0:
        return math.floor(value * 100 + 1e-9) / 100
    size = 10.0 ** (math.floor(math.log10(abs(value))) - 1) if value else 1.0
    return float(f"{math.ceil(value / size - 1e-9) * size:.6g}")
