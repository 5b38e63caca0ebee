"""The report's tables of methods and of partitions: means with intervals and n."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.compare import summary_table
from pipeline.comparisons import difference_at
from pipeline.estimates import Estimate
from pipeline.pairing import pair_runs
from pipeline.report_cells import (
    FIGURES,
    Figure,
    head,
    number_cell,
    table,
    text_cell,
    written,
)
from pipeline.series import Group
from pipeline.statistics import interquartile_mean, mean

__all__ = ["method_table", "partition_table"]

_ACCURACY = FIGURES[0]


def method_table(ds: xr.Dataset, groups: Sequence[Group]) -> str:
    """Return one row a group, the best mean test accuracy first.

    A figure is the mean at each run's end, below it its 95 % interval, or its lowest
    and highest value below three runs. The interquartile mean has a column of its own.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    groups : from `pipeline.series.group_runs`.
    """
    runs = summary_table(ds)
    heads = head("Method") + head("n", "number")
    heads += head(_ACCURACY.heading, "number", "descending")
    heads += head("Interquartile mean", "number")
    heads += "".join(head(figure.heading, "number") for figure in FIGURES[1:])
    rows = []
    for group in sorted(groups, key=lambda g: _rank(runs, g)):
        part = runs.iloc[list(group.runs)]
        label = html.escape(group.label)
        cells = f'<th scope="row" data-value="{label}">{label}</th>'
        cells += number_cell(len(group.runs), str(len(group.runs)))
        values = part[_ACCURACY.name].to_numpy(dtype="float64")
        cells += _estimate_cell(values, _ACCURACY)
        cells += _estimate_cell(values, _ACCURACY, interquartile=True)
        cells += "".join(
            _estimate_cell(part[f.name].to_numpy(dtype="float64"), f)
            for f in FIGURES[1:]
        )
        rows.append(f"<tr>{cells}</tr>")
    return table(heads, rows, "methods")


def _rank(runs: pd.DataFrame, group: Group) -> float:
    values = runs[_ACCURACY.name].to_numpy(dtype="float64")[list(group.runs)]
    known = values[np.isfinite(values)]
    return -float(known.mean()) if len(known) else np.inf


def _estimate_cell(
    values: np.ndarray, figure: Figure, *, interquartile: bool = False
) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return number_cell(np.nan, "–")
    found = (interquartile_mean if interquartile else mean)(known)
    below = _interval(found, known, figure)
    if len(known) < len(values):
        below += f" of {len(known)} runs"
    title = f"{found.what}, n = {found.n} runs, {found.method}"
    return number_cell(found.estimate, written(found.estimate, figure), below, title)


def _interval(found: Estimate, values: np.ndarray, figure: Figure) -> str:
    if values.min() == values.max():
        return ""
    if found.claims:
        return f"[{written(found.low, figure)}, {written(found.high, figure)}]"
    return f"{written(values.min(), figure)} – {written(values.max(), figure)}"


def partition_table(ds: xr.Dataset, groups: Sequence[Group]) -> str:
    """Return one row a method and partition, for methods that have several; or "".

    The difference is that of test accuracy when each has used its own budget, paired
    over seeds, to the first partition of the same method and settings.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.loaded`.
    groups : from `pipeline.series.group_runs`.
    """
    families: dict[tuple[str, ...], list[Group]] = {}
    names = ("algorithm", "mode", "dataset", "model")
    for group in groups:
        settings = (*names, *ds.attrs.get("config_varies", ()))
        key = tuple(str(ds[name].values[group.runs[0]]) for name in settings)
        families.setdefault(key, []).append(group)
    runs = summary_table(ds)
    rows = []
    for key, family in families.items():
        if len({_partition(ds, group) for group in family}) < 2:
            continue
        for group in family:
            part = runs.iloc[list(group.runs)]
            cells = text_cell(" ".join(key[:2])) + text_cell(_partition(ds, group))
            cells += number_cell(len(group.runs), str(len(group.runs)))
            cells += "".join(
                _estimate_cell(part[f.name].to_numpy(dtype="float64"), f)
                for f in FIGURES[:5]
            )
            rows.append(f"<tr>{cells}{_difference_cell(ds, group, family[0])}</tr>")
    if not rows:
        return ""
    heads = head("Method") + head("Partition") + head("n", "number")
    heads += "".join(head(f.heading, "number") for f in FIGURES[:5])
    heads += head("Accuracy, difference to the first", "number")
    return table(heads, rows, "partitions")


def _partition(ds: xr.Dataset, group: Group) -> str:
    return str(ds["partition"].values[group.runs[0]])


def _difference_cell(ds: xr.Dataset, group: Group, first: Group) -> str:
    if group is first:
        return number_cell(np.nan, "–")
    try:
        pairs = pair_runs(ds, group.runs, first.runs, "to the first partition")
    except ValueError as err:  # two runs of one seed: said where the figure would be
        return number_cell(np.nan, "not paired", "", str(err))
    updates = ds["step"].values[[*pairs.first, *pairs.second]]
    found = difference_at(ds, pairs, at=float(updates.max(initial=0)))
    if not found.claims:
        return number_cell(found.estimate, "no claim", f"n = {found.n} pairs")
    low, high = f"{found.low:+.4f}", f"{found.high:+.4f}"
    below = f"[{low}, {high}], n = {found.n} pairs"
    return number_cell(found.estimate, f"{found.estimate:+.4f}", below, found.method)
