"""Rich tables of data frames, algorithms and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from flows.console import format_value, harmless, make_table, out

if TYPE_CHECKING:
    from flows.doctor import Check

RUN_COLUMNS = {
    "run_id": "run",
    "status": "status",
    "test_accuracy": "accuracy",
    "train_loss": "loss",
    "n_loss_evals": "loss values",
    "wall_time_s": "time s",
}
COMPARED = {
    "algorithm": "algorithm",
    "mode": "mode",
    "seed": "seed",
    "test_accuracy": "accuracy",
    "train_loss": "loss",
    "wall_time_s": "time s",
    "n_loss_evals": "loss values",
    "n_samples": "samples",
    "mean_staleness": "staleness",
}
MAX_VARIED = 3  # settings that differ, shown as columns; the page has them all
WIDE = 120  # characters of a line that has room for them
ALGORITHM_COLUMNS = ("algorithm", "may use", "modes", "nodes", "paper")
_COLOURS = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}


def run_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the runs of a results folder; the experiment only where there are some."""
    columns = dict(RUN_COLUMNS)
    if len({row["experiment"] for row in rows}) > 1:
        columns["experiment"] = "experiment"
    return make_table(
        list(columns.values()), ([row[name] for name in columns] for row in rows)
    )


def comparison_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """Return compared runs: what they have and differ in; below, what is the same.

    Settings that only some of them have (those of one algorithm) are left to the page.
    """
    figures = [name for name in COMPARED if name in rows[0]]
    others = [name for name in rows[0] if name not in COMPARED and name != "run_id"]
    delays = [n for n in others if n.startswith("config.delays.")]  # none is a value
    known = [n for n in others if all(format_value(r[n]) != "–" for r in rows)]
    shared = [*delays, *(n for n in known if n not in delays)]
    varied = [n for n in shared if len({str(row[n]) for row in rows}) > 1]
    same = [n for n in shared if n not in varied and rows[0][n] != 0]
    columns = [*figures, *(varied[:MAX_VARIED] if out.width >= WIDE else [])]
    table = make_table(
        [COMPARED.get(n, n.removeprefix("config.")) for n in columns],
        ([row[name] for name in columns] for row in rows),
        title or None,
    )
    if same:
        text = ", ".join(
            f"{format_value(name)} {format_value(rows[0][name])}" for name in same
        )
        table.caption = Text(f"in all: {text}")
        table.caption_justify = "left"
    return table


def algorithm_rows() -> list[dict[str, Any]]:
    """Return one row per registered algorithm."""
    from blocks import ALGORITHMS

    rows = []
    for kind, algorithm in ALGORITHMS.items():
        flags = [f.name.lower().replace("_", " ") for f in algorithm.information]
        values = (
            kind,
            ", ".join(flags) or "nothing",
            ", ".join(sorted(algorithm.modes, reverse=True)),
            _nodes(algorithm),
            algorithm.paper,
        )
        rows.append(dict(zip(ALGORITHM_COLUMNS, values, strict=True)))
    return rows


def _nodes(algorithm: Any) -> str:
    if algorithm.blockwise:
        return "blocks"
    return "replicas" if "nodes" in algorithm.defaults else "one replica"


def check_table(checks: list[Check]) -> Table:
    """Return the doctor's findings, with advice below what is wrong."""
    table = Table(header_style="bold")
    for column in ("check", "verdict", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        found = Text(harmless(check.found))
        if check.advice:
            found.append(f"\n{harmless(check.advice)}", style=_COLOURS[check.verdict])
        verdict = Text(check.verdict, style=_COLOURS[check.verdict])
        table.add_row(check.name, verdict, found)
    return table
