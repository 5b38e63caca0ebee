"""Asynchrony on the report's page: a table of figures, and what its charts draw."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pipeline.asynchrony import Activity, Window, activity, read_activity, window
from pipeline.series import Group

__all__ = ["RunActivity", "activity_data", "activity_of_runs", "activity_table"]

#: Runs whose updates are read: those of more would make a slow and heavy page.
MOST_RUNS = 24
#: Runs that are drawn.
MOST_DRAWN = 8
_MOST_SPANS = 800
_MOST_BARS = 40


@dataclass(frozen=True, slots=True)
class RunActivity:
    """What updates of one run did; ``missing`` says why it is not known."""

    run_id: str
    label: str
    activity: Activity | None
    window: Window | None
    missing: str = ""


def activity_of_runs(ds: xr.Dataset, groups: Sequence[Group]) -> list[RunActivity]:
    """Return what the updates of at most 24 runs did: as many of every method.

    Methods that run in both modes come first, then asynchronous ones.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`; stores are read again.
    groups : from `pipeline.series.group_runs`.
    """
    modes: dict[str, set[str]] = {}
    for algorithm, mode in zip(
        ds["algorithm"].values.tolist(), ds["mode"].values.tolist(), strict=True
    ):
        modes.setdefault(algorithm, set()).add(mode)

    def order(group: Group) -> tuple[bool, bool]:
        run = group.runs[0]
        single = len(modes[str(ds["algorithm"].values[run])]) < 2
        return single, str(ds["mode"].values[run]) == "sync"

    ordered = sorted(groups, key=order)[:MOST_RUNS]
    each = max(1, MOST_RUNS // len(ordered))
    return [
        _of_run(ds, run, group.label, drawn=k == 0 and i < MOST_DRAWN)
        for i, group in enumerate(ordered)
        for k, run in enumerate(group.runs[:each])
    ]


def _of_run(ds: xr.Dataset, run: int, label: str, *, drawn: bool) -> RunActivity:
    run_id = str(ds["run_id"].values[run])
    try:
        read = read_activity(Path(str(ds["store"].values[run])))
    except ValueError as err:
        return RunActivity(run_id, label, None, None, str(err))
    found = activity(read, synchronous=str(ds["mode"].values[run]) == "sync")
    if found is None:
        return RunActivity(run_id, label, None, None, "it made no update")
    part = window(read, most=_MOST_SPANS) if drawn else None
    return RunActivity(run_id, label, found, part)


def activity_table(runs: Sequence[RunActivity], n_runs: int) -> str:
    """Return one row a run, and below it what is left out, as HTML.

    Parameters
    ----------
    runs : from `activity_of_runs`.
    n_runs : how many runs the page compares.
    """
    heads = (
        *("Run", "Mean staleness", "95 % at most", "Most", "Never scored"),
        *("Updates per block", "Updating", "Scoring or waiting", "Idle"),
        "Lost at the barrier",
    )
    head = "".join(
        f'<th scope="col"{" class=number" * (i > 0)}>{name}</th>'
        for i, name in enumerate(heads)
    )
    rows = "\n".join(_row(one) for one in runs if one.activity is not None)
    text = (
        f'<table class="sortable" id="activity"><thead><tr>{head}</tr></thead><tbody>\n'
        f"{rows}\n</tbody></table>"
    )
    missing = [
        f"{one.run_id}: {one.missing}".rstrip(".") for one in runs if one.missing
    ]
    notes = [f"Without updates to show: {'; '.join(missing)}."] * bool(missing)
    if len(runs) < n_runs:
        notes.append(f"Of {len(runs)} of {n_runs:,} runs, as many of every method.")
    return text + "".join(f'<p class="hint">{html.escape(n)}</p>' for n in notes)


def _row(one: RunActivity) -> str:
    found = one.activity
    assert found is not None
    name = html.escape(one.run_id)
    cells = [f'<th scope="row" class="run" data-value="{name}">{name}</th>']
    cells += [_number(value, f"{value:.2f}") for value in _staleness(found)[:1]]
    cells += [_number(value, f"{value:.0f}") for value in _staleness(found)[1:]]
    unscored = found.n_unscored if found.staleness.sum() else np.nan
    cells.append(_number(unscored, f"{unscored:,.0f}"))
    least, most = int(found.updates.min()), int(found.updates.max())
    shown = f"{least:,}" if least == most else f"{least:,} – {most:,}"
    cells.append(_number(least, shown))
    for shares in (found.updating, found.scoring, found.idle):
        unknown = shares is found.scoring and not found.n_scores
        value = np.nan if unknown else float(shares.mean())
        cells.append(_number(value, f"{value:.1%}"))
    barrier = np.nan if found.barrier is None else found.barrier
    cells.append(_number(barrier, f"{barrier:.1%}"))
    return f"<tr>{''.join(cells)}</tr>"


def _staleness(found: Activity) -> tuple[float, float, float]:
    """Return mean, 95th percentile and largest staleness; NaN where undefined."""
    counts = found.staleness
    if not counts.sum():
        return np.nan, np.nan, np.nan
    mean = float((counts * np.arange(len(counts))).sum() / counts.sum())
    below = np.cumsum(counts) / counts.sum()
    return mean, float(np.searchsorted(below, 0.95)), float(len(counts) - 1)


def _number(value: float, text: str) -> str:
    known = np.isfinite(value)
    key, shown = (f"{value!r}", text) if known else ("", "–")
    return f'<td class="number" data-value="{key}">{shown}</td>'


def activity_data(runs: Sequence[RunActivity]) -> list[dict[str, Any]]:
    """Return what the charts draw of the runs that have a window, ready for JSON.

    Parameters
    ----------
    runs : from `activity_of_runs`.
    """
    return list(_drawn(runs))


def _drawn(runs: Sequence[RunActivity]) -> Iterator[dict[str, Any]]:
    for one in runs:
        found, part = one.activity, one.window
        if found is None or part is None:
            continue
        bars = found.staleness[:_MOST_BARS].tolist()
        if len(found.staleness) > _MOST_BARS:
            bars[-1] = int(found.staleness[_MOST_BARS - 1 :].sum())
        shares = np.stack([found.updating, found.scoring, found.idle], axis=1)
        yield {
            "id": one.run_id,
            "label": one.label,
            "staleness": bars,
            "cut": len(found.staleness) > _MOST_BARS,
            "updates": found.updates.tolist(),
            "workers": list(found.workers),
            "shares": shares.round(4).tolist(),
            "start": round(part.start_s, 4),
            "seconds": round(part.end_s - part.start_s, 5),
            "row": part.row.tolist(),
            "node": part.node.tolist(),
            "spans": _relative(part.updates, part.start_s),
            "scores": _relative(part.scores, part.start_s),
            "alts": _alternative_texts(one, found, part),
        }


def _relative(spans: np.ndarray, start: float) -> list[list[float]]:
    """Return spans in ms from the window's start."""
    return ((spans - start) * 1e3).round(2).tolist()  # type: ignore[no-any-return]


def _alternative_texts(
    one: RunActivity, found: Activity, part: Window
) -> dict[str, str]:
    mean, high, most = _staleness(found)
    stale = (
        f"mean {mean:.2f} versions, 95 % at most {high:.0f}, largest {most:.0f}"
        if found.staleness.sum()
        else "undefined, as no update was scored after a version that it saw"
    )
    shares = "; ".join(
        f"worker {name} {u:.0%} updating, {s:.0%} scoring or waiting, {i:.0%} idle"
        for name, u, s, i in zip(
            found.workers, found.updating, found.scoring, found.idle, strict=True
        )
    )
    return {
        "staleness": f"Staleness of the updates of {one.run_id}: {stale}.",
        "updates": f"Updates of each block of {one.run_id}: from "
        f"{found.updates.min():,} to {found.updates.max():,}.",
        "shares": f"What workers of {one.run_id} did: {shares}.",
        "timeline": f"Timeline of {one.run_id} from {part.start_s:.3g} to "
        f"{part.end_s:.3g} s: {len(part.row):,} updates on {len(found.workers)} "
        f"workers and {len(part.scores):,} scores.",
    }
