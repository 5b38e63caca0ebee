"""The tables of the report, as HTML with every value escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from pipeline.compare import summary_table
from pipeline.report_cells import (
    FIGURES,
    head,
    number_cell,
    table,
    text_cell,
    written,
)
from pipeline.series import FINISHED, Group
from pipeline.varying import common_fields

__all__ = [
    "difference_table",
    "how_it_ended",
    "provenance_list",
    "run_table",
]

_MAX_VALUES = 6
_TEXTS = ("dataset", "model", "partition")


def how_it_ended(status: str, stop_reason: str) -> str:
    """Return status and reason without saying one thing twice."""
    return stop_reason if stop_reason.startswith(status) else f"{status}: {stop_reason}"


def run_table(ds: xr.Dataset) -> str:
    """Return one row a run; what is the same in all runs has no column."""
    runs = summary_table(ds)
    texts = [name for name in _TEXTS if runs[name].nunique() > 1]
    heads = (
        head("Run")
        + head("Method")
        + "".join(head(name.capitalize()) for name in texts)
    )
    heads += head("Seed", "number") + head("Status")
    heads += "".join(head(figure.heading, "number") for figure in FIGURES)
    rows = []
    for run_id, row in zip(runs.index, runs.to_dict("records"), strict=True):
        name = html.escape(str(run_id))
        cells = f'<th scope="row" class="run" data-value="{name}">{name}</th>'
        cells += text_cell(f"{row['algorithm']} {row['mode']}")
        cells += "".join(text_cell(str(row[name])) for name in texts)
        cells += number_cell(row["seed"], str(row["seed"]))
        odd = row["status"] != FINISHED
        ending = how_it_ended(str(row["status"]), str(row["stop_reason"]))
        cells += text_cell(ending if odd else FINISHED, "wrap odd" if odd else "")
        cells += "".join(
            number_cell(row[figure.name], written(row[figure.name], figure))
            for figure in FIGURES
        )
        rows.append(f"<tr>{cells}</tr>")
    return table(heads, rows, "runs")


def difference_table(ds: xr.Dataset, groups: Sequence[Group]) -> str:
    """Return one row a configuration field that varies, one column a group."""
    fields = list(ds.attrs.get("config_varies", ()))
    if not fields:
        return (
            '<p class="hint">Runs differ in nothing but what the table of runs '
            "shows.</p>" + _common_config(ds)
        )
    heads = head("Field") + "".join(head(group.label) for group in groups)
    rows = []
    for field in fields:
        cells = f'<th scope="row">{html.escape(field.removeprefix("config."))}</th>'
        for group in groups:
            own = ds[field].values[list(group.runs)]
            values = dict.fromkeys(_plain(value) for value in own)
            listed = list(values)[:_MAX_VALUES] + ["…"] * (len(values) > _MAX_VALUES)
            cells += f'<td class="wrap">{html.escape(", ".join(listed))}</td>'
        rows.append(f"<tr>{cells}</tr>")
    region = 'role="region" aria-label="Table of differences"'
    shown = f'<div class="scroll" tabindex="0" {region}>{table(heads, rows)}</div>'
    return shown + _common_config(ds)


def provenance_list(ds: xr.Dataset, command: str | None = None) -> str:
    """Return commits, versions, hardware, stores and command as a definition list."""
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
        ("Clock", ds["clock"].values.tolist()),
        ("This page", [command] if command else ["pipeline.report.write_report"]),
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
    """Return what all runs share, and one full configuration, both folded away."""
    shared = common_fields([json.loads(str(text)) for text in ds["config"].values])
    lines = "\n".join(f"{key}: {value}" for key, value in shared.items())
    first = json.dumps(json.loads(str(ds["config"].values[0])), indent=2)
    run_id = html.escape(str(ds["run_id"].values[0]))
    return (
        f"<details><summary>What all runs share ({len(shared)} settings)</summary>"
        f"<pre>{html.escape(lines)}</pre></details>"
        f"<details><summary>Whole configuration of {run_id}</summary>"
        f"<pre>{html.escape(first)}</pre></details>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:g}"
    return str(value) or "–"


def _joined(text: str) -> str:
    return ", ".join(f"{key} {value}" for key, value in json.loads(text).items())
