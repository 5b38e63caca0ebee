"""The tables of the report, as HTML with every value escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from pipeline.compare import summary_table
from pipeline.series import FINISHED, Group

__all__ = [
    "difference_table",
    "how_it_ended",
    "method_table",
    "provenance_list",
    "run_table",
]

_MAX_VALUES = 6


@dataclass(frozen=True, slots=True)
class _Figure:
    """A numeric column: its name, heading, and how it is written."""

    name: str
    heading: str
    style: Literal["share", "loss", "seconds", "count", "versions"]


_FIGURES = (
    _Figure("test_accuracy", "Test accuracy", "share"),
    _Figure("train_loss", "Training loss", "loss"),
    _Figure("wall_time_s", "Wall time", "seconds"),
    _Figure("n_loss_evals", "Loss values", "count"),
    _Figure("n_samples", "Samples", "count"),
    _Figure("n_gradient_evals", "Gradient evaluations", "count"),
    _Figure("mean_staleness", "Mean staleness", "versions"),
)
_TEXTS = ("dataset", "model", "partition")


def how_it_ended(status: str, stop_reason: str) -> str:
    """Return status and reason without saying one thing twice."""
    return stop_reason if stop_reason.startswith(status) else f"{status}: {stop_reason}"


def method_table(ds: xr.Dataset, groups: Sequence[Group]) -> str:
    """Return one row a group: n, and mean with lowest and highest of every figure."""
    table = summary_table(ds)
    head = _head("Method") + _head("n", "number")
    head += "".join(_head(figure.heading, "number") for figure in _FIGURES)
    rows = []
    for group in groups:
        part = table.iloc[list(group.runs)]
        cells = f'<th scope="row">{html.escape(group.label)}</th>'
        cells += f'<td class="number">{len(group.runs)}</td>'
        cells += "".join(_mean_cell(part[f.name].to_numpy(), f) for f in _FIGURES)
        rows.append(f"<tr>{cells}</tr>")
    return _table(head, rows)


def run_table(ds: xr.Dataset) -> str:
    """Return one row a run; what is the same in all runs has no column."""
    table = summary_table(ds)
    texts = [name for name in _TEXTS if table[name].nunique() > 1]
    head = (
        _head("Run")
        + _head("Method")
        + "".join(_head(name.capitalize()) for name in texts)
    )
    head += _head("Seed", "number") + _head("Status")
    head += "".join(_head(figure.heading, "number") for figure in _FIGURES)
    rows = []
    for run_id, row in zip(table.index, table.to_dict("records"), strict=True):
        name = html.escape(str(run_id))
        cells = f'<th scope="row" class="run" data-value="{name}">{name}</th>'
        cells += _text_cell(f"{row['algorithm']} {row['mode']}")
        cells += "".join(_text_cell(str(row[name])) for name in texts)
        cells += _number_cell(row["seed"], str(row["seed"]))
        odd = row["status"] != FINISHED
        ending = how_it_ended(str(row["status"]), str(row["stop_reason"]))
        cells += _text_cell(ending if odd else FINISHED, "wrap odd" if odd else "")
        cells += "".join(
            _number_cell(row[figure.name], _written(row[figure.name], figure))
            for figure in _FIGURES
        )
        rows.append(f"<tr>{cells}</tr>")
    return _table(head, rows, "runs")


def difference_table(ds: xr.Dataset, groups: Sequence[Group]) -> str:
    """Return one row a configuration field that varies, one column a group."""
    fields = list(ds.attrs.get("config_varies", ()))
    if not fields:
        return (
            '<p class="hint">Runs differ in nothing but what the table of runs '
            "shows.</p>" + _common_config(ds)
        )
    head = _head("Field") + "".join(_head(group.label) for group in groups)
    rows = []
    for field in fields:
        cells = f'<th scope="row">{html.escape(field.removeprefix("config."))}</th>'
        for group in groups:
            own = ds[field].values[list(group.runs)]
            values = dict.fromkeys(_plain(value) for value in own)
            shown = list(values)[:_MAX_VALUES] + ["…"] * (len(values) > _MAX_VALUES)
            cells += f'<td class="wrap">{html.escape(", ".join(shown))}</td>'
        rows.append(f"<tr>{cells}</tr>")
    region = 'role="region" aria-label="Table of differences"'
    table = f'<div class="scroll" tabindex="0" {region}>{_table(head, rows)}</div>'
    return table + _common_config(ds)


def provenance_list(ds: xr.Dataset) -> str:
    """Return commits, versions, hardware and stores as a definition list."""
    commits = [
        f"{commit or 'not a checkout'}{' (with uncommitted changes)' if dirty else ''}"
        for commit, dirty in zip(
            ds["git_commit"].values, ds["git_dirty"].values, strict=True
        )
    ]
    rows = [
        ("Commit", commits),
        ("Versions", [_joined(text) for text in ds["versions"].values]),
        ("Hardware", [_joined(text) for text in ds["hardware"].values]),
        ("Workers", [str(n) for n in ds["n_workers"].values]),
    ]
    entries = "".join(
        f"<dt>{name}</dt>"
        + "".join(f"<dd>{html.escape(value)}</dd>" for value in dict.fromkeys(values))
        for name, values in rows
    )
    stores = "\n".join(
        f"{digest[:12]:12}  {store}"
        for digest, store in zip(
            ds["params_sha256"].values, ds["store"].values, strict=True
        )
    )
    return (
        f"<dl>{entries}</dl><details><summary>Stores, each with the start of its "
        f"parameters' SHA-256</summary><pre>{html.escape(stores)}</pre></details>"
    )


def _common_config(ds: xr.Dataset) -> str:
    """Return one full configuration, folded away, for the fields that do not vary."""
    first = json.dumps(json.loads(str(ds["config"].values[0])), indent=2)
    run_id = html.escape(str(ds["run_id"].values[0]))
    return (
        f"<details><summary>Whole configuration of {run_id}</summary>"
        f"<pre>{html.escape(first)}</pre></details>"
    )


def _table(head: str, rows: Sequence[str], name: str = "") -> str:
    start = f'<table id="{name}">' if name else "<table>"
    body = "\n".join(rows)
    return f"{start}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _head(text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<th scope="col"{kind}>{html.escape(text)}</th>'


def _text_cell(text: str, kind: str = "") -> str:
    text = html.escape(text)
    kind = f' class="{kind}"' if kind else ""
    return f'<td{kind} data-value="{text}">{text}</td>'


def _number_cell(value: float, text: str) -> str:
    sort_key = f"{value!r}" if np.isfinite(value) else ""
    return f'<td class="number" data-value="{sort_key}">{html.escape(text)}</td>'


def _mean_cell(values: np.ndarray, figure: _Figure) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return '<td class="number">–</td>'
    cell = _written(float(known.mean()), figure)
    if len(known) > 1 and known.min() < known.max():
        low, high = _written(known.min(), figure), _written(known.max(), figure)
        cell += f'<span class="range">{low} – {high}</span>'
    if len(known) < len(values):
        cell += f'<span class="range">of {len(known)} runs</span>'
    return f'<td class="number">{cell}</td>'


def _written(value: float, figure: _Figure) -> str:
    if not np.isfinite(value):
        return "–"
    match figure.style:
        case "share":
            return f"{value:.4f}"
        case "loss":
            return f"{value:.4g}"
        case "seconds":
            return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"
        case "count":
            return f"{value:,.0f}"
        case "versions":
            return f"{value:.2f}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:g}"
    return str(value) or "–"


def _joined(text: str) -> str:
    return ", ".join(f"{key} {value}" for key, value in json.loads(text).items())
