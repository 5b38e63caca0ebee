"""Cells of the report's tables: every value escaped, with the key to sort it by."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["FIGURES", "Figure", "head", "number_cell", "table", "text_cell", "written"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A numeric column: its name, heading, and how it is written."""

    name: str
    heading: str
    style: Literal["share", "loss", "seconds", "count", "versions"]


FIGURES = (
    Figure("test_accuracy", "Test accuracy", "share"),
    Figure("train_loss", "Training loss", "loss"),
    Figure("wall_time_s", "Wall time", "seconds"),
    Figure("n_loss_evals", "Loss values", "count"),
    Figure("n_samples", "Samples", "count"),
    Figure("n_gradient_evals", "Gradient evaluations", "count"),
    Figure("mean_staleness", "Mean staleness", "versions"),
)


def table(head: str, rows: Sequence[str], name: str = "") -> str:
    """Return a table; one with a name can be sorted."""
    start = f'<table id="{name}" class="sortable">' if name else "<table>"
    body = "\n".join(rows)
    return f"{start}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def head(text: str, kind: str = "", sort: str = "") -> str:
    """Return the heading of a column, ``number`` or not, and how it is sorted."""
    kind = f' class="{kind}"' if kind else ""
    sort = f' aria-sort="{sort}"' if sort else ""
    return f'<th scope="col"{kind}{sort}>{html.escape(text)}</th>'


def text_cell(text: str, kind: str = "") -> str:
    """Return a cell of words."""
    text = html.escape(text)
    kind = f' class="{kind}"' if kind else ""
    return f'<td{kind} data-value="{text}">{text}</td>'


def number_cell(value: float, text: str, below: str = "", title: str = "") -> str:
    """Return a cell of a figure, with a smaller line below it if there is one."""
    sort_key = f"{value!r}" if np.isfinite(value) else ""
    below = f'<span class="range">{html.escape(below)}</span>' if below else ""
    title = f' title="{html.escape(title)}"' if title else ""
    return (
        f'<td class="number" data-value="{sort_key}"{title}>'
        f"{html.escape(text)}{below}</td>"
    )


def written(value: float, figure: Figure) -> str:
    """Return a figure as its column writes it."""
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
