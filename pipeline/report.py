"""One self-contained HTML page that compares runs; it opens with no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np
import xarray as xr

from pipeline.compare import loaded
from pipeline.estimates import MIN_PAIRS
from pipeline.outputs import may_write
from pipeline.report_asynchrony import activity_data, activity_of_runs, activity_table
from pipeline.report_data import chart_data
from pipeline.report_methods import method_table, partition_table
from pipeline.report_tables import (
    difference_table,
    how_it_ended,
    provenance_list,
    run_table,
)
from pipeline.report_verdicts import verdict_list
from pipeline.series import FINISHED, PALETTE, Group, group_runs
from pipeline.verdicts import verdicts
from pipeline.whole_file import write_whole

__all__ = ["report_html", "write_report"]

MOST_NAMED = 4  # groups in one note
_PARTS = Path(__file__).parent / "report_page"


def write_report(
    ds: xr.Dataset,
    out: str | Path,
    title: str | None = None,
    *,
    target: Mapping[str, float] | None = None,
    left_out: Sequence[str] = (),
    command: str | None = None,
) -> Path:
    """Write the comparison as one HTML page, whole or not at all.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    out : the file to write; its folder is made where it is missing.
    title : heading of the page; the default says how many runs it compares.
    target : ``{"val_accuracy": 0.9}``, what verdicts take the time to; by default
        chosen by the rule of `pipeline.verdict_targets.aim_of`.
    left_out : runs that have no store, and why: failed, never run.
    command : what made the page.

    Returns
    -------
    ``out``.

    Raises
    ------
    ValueError, FileExistsError — if ``out`` is no place for a page, or something else
    is there.
    """
    path = may_write(out, "report", "out")
    page = report_html(ds, title, target=target, left_out=left_out, command=command)
    return write_whole(path, page)


def report_html(
    ds: xr.Dataset,
    title: str | None = None,
    *,
    target: Mapping[str, float] | None = None,
    left_out: Sequence[str] = (),
    command: str | None = None,
) -> str:
    """Return the page of `write_report`: verdicts, tables, curves and provenance.

    The page loads nothing: its policy forbids it. Text from runs is escaped, and its
    only script is known to the policy by its hash.
    """
    ds = loaded(ds)
    groups = group_runs(ds)
    activities = activity_of_runs(ds, groups)
    data = chart_data(ds, groups) | {"activity": activity_data(activities)}
    script = "".join(_part(f"{name}.js") for name in ("draw", "page", "asynchrony"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    heading = title or f"Comparison of {_count(ds.sizes['run'], 'run')}"
    return Template(_part("page.html")).substitute(
        title=html.escape(heading),
        script_hash=f"sha256-{digest}",
        palette=_palette_css(groups),
        css=_part("page.css"),
        lead=html.escape(_lead(ds, groups)),
        notes="\n".join(
            f'<p class="warn">{html.escape(n)}</p>'
            for n in _notes(ds, groups, left_out)
        ),
        verdicts=verdict_list(verdicts(ds, groups, target)),
        methods=method_table(ds, groups),
        partitions=_section("partitions", "Partitions", partition_table(ds, groups)),
        activity=activity_table(activities, ds.sizes["run"]),
        runs=run_table(ds),
        differences=difference_table(ds, groups),
        provenance=provenance_list(ds, command),
        data=_script_safe(json.dumps(data, allow_nan=False)),
        script=script,
    )


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _section(key: str, title: str, shown: str) -> str:
    """Return a section with a table that may be wide; nothing without a table."""
    if not shown:
        return ""
    return (
        f'<section aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of {key}">'
        f"{shown}</div></section>"
    )


def _script_safe(text: str) -> str:
    """Return JSON that cannot end or open an element of the page around it."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _palette_css(groups: Sequence[Group]) -> str:
    used = range(max(len(PALETTE), 1 + max(group.colour for group in groups)))
    light, dark = (
        "".join(f"--c{i}: {PALETTE[i % len(PALETTE)][shade]}; " for i in used)
        for shade in (0, 1)
    )
    return (
        f":root {{ {light}}}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
    )


def _lead(ds: xr.Dataset, groups: Sequence[Group]) -> str:
    seeds = len(np.unique(ds["seed"].values))
    parts = [_count(len(groups), "method"), _count(seeds, "seed")]
    for name in ("dataset", "model", "partition"):
        values = list(dict.fromkeys(ds[name].values.tolist()))
        shown = ", ".join(values[:3]) + (" and others" if len(values) > 3 else "")
        parts.append(f"{name} {shown}")
    return " · ".join(parts)


def _listed(groups: Sequence[Group], n_all: int) -> str:
    """Name a few groups with their runs, or say that it is all of many."""
    if len(groups) > MOST_NAMED and len(groups) == n_all:
        return f"all {n_all} methods"
    named = [f"{g.label} (n = {len(g.runs)})" for g in groups[:MOST_NAMED]]
    more = len(groups) - len(named)
    return ", ".join(named) + (f" and {more} others" if more else "")


def _notes(
    ds: xr.Dataset, groups: Sequence[Group], left_out: Sequence[str]
) -> Iterable[str]:
    """Yield what a reader must know before reading the figures."""
    small = [group for group in groups if len(group.runs) < MIN_PAIRS]
    if small:
        yield (
            f"Fewer than {MIN_PAIRS} seeds: {_listed(small, len(groups))}. "
            "Differences between methods may be chance."
        )
    seeds = {tuple(sorted(ds["seed"].values[list(g.runs)].tolist())) for g in groups}
    if len(seeds) > 1:
        yield "The methods do not share the same seeds, so runs cannot all be paired."
        yield from _missing_seeds(ds, groups)
    status = ds["status"].values.tolist()
    ended = [i for i, value in enumerate(status) if value != FINISHED]
    if ended:
        reasons = ds["stop_reason"].values.tolist()
        names = ", ".join(
            f"{ds['run_id'].values[i]} ({how_it_ended(status[i], reasons[i])})"
            for i in ended[:10]
        )
        more = f" and {len(ended) - 10} more" if len(ended) > 10 else ""
        yield (
            f"{_count(len(ended), 'run')} ended early; the figures are from there: "
            f"{names}{more}."
        )
    yield from ds.attrs.get("kept_apart", ())
    skipped = [*left_out, *ds.attrs.get("skipped", [])]
    if skipped:
        yield f"Left out: {'; '.join(skipped)}."
    for name, what in (("git_commit", "commits"), ("hardware", "machines")):
        if len(np.unique(ds[name].values)) > 1:
            yield f"Runs come from different {what}: see Provenance."
    if ds["git_dirty"].values.any():
        yield "Some runs come from code with uncommitted changes."


def _missing_seeds(ds: xr.Dataset, groups: Sequence[Group]) -> Iterable[str]:
    """Yield which methods lack a seed that another has, ten of them at most."""
    own = {group.label: {*ds["seed"].values[list(group.runs)]} for group in groups}
    every = sorted(set().union(*own.values()))
    lacking = [
        f"{label}: " + ", ".join(str(seed) for seed in missing[:10])
        for label, has in own.items()
        if (missing := [seed for seed in every if seed not in has])
    ]
    more = f" and {len(lacking) - 10} more methods" if len(lacking) > 10 else ""
    yield f"Missing seeds: {'; '.join(lacking[:10])}{more}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
