"""What a command prints: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipeline.progress import Progress

SHORT_TEXT = 12  # characters of a cell that is never wrapped
PIPE_WIDTH = 140  # characters of a line where stdout is no terminal


def _width() -> int | None:
    """Return None (the terminal decides), or a fixed width for pipes and files."""
    here = sys.stdout is not None and sys.stdout.isatty()
    return None if here or "COLUMNS" in os.environ else PIPE_WIDTH


out = Console(width=_width())
err = Console(stderr=True)

# C0 and C1 but the line end, marks of direction, separators, halves of pairs.
_OBEYED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e"
    "\u2066-\u2069\ud800-\udfff\ufeff]"
)
PLAIN_EVERY_S = 5.0  # seconds between plain progress lines
LIVE_EVERY_S = 0.1  # seconds between redraws of the live display


def harmless(text: str) -> str:
    """Return ``text`` with what a terminal obeys, and cannot show, as escapes.

    Names and reasons come from stores and servers: control characters could hide or
    forge lines, and marks of direction could reorder them. Line ends are kept.
    """
    return _OBEYED.sub(lambda found: ascii(found.group())[1:-1], text)


def print_error(message: str) -> None:
    """Print one red line on stderr."""
    err.print(Text(harmless(f"error: {message}"), style="bold red"), soft_wrap=True)


def note(message: str) -> None:
    """Print one dim line on stderr."""
    err.print(Text(harmless(message), style="dim"), soft_wrap=True)


def say(message: str) -> None:
    """Print one line on stdout."""
    out.print(Text(harmless(message)), soft_wrap=True)


_STDOUT, _STDERR = 1, 2  # descriptors
_kept: list[ExitStack] = []  # what gives stdout back, while it waits for its JSON


@contextmanager
def stdout_for_json(wanted: bool) -> Iterator[None]:
    """Send to stderr what is printed until ``print_json``, if a command answers so.

    The user's code prints, too; what processes that are started meanwhile print on
    their stdout, as workers do, goes to stderr as well.
    """
    if not wanted:
        yield
        return
    with ExitStack() as stack:
        real = sys.stdout
        stack.enter_context(redirect_stdout(sys.stderr))
        with suppress(OSError):  # a process that was started without a stdout
            real.flush()
            saved = os.dup(_STDOUT)
            stack.callback(os.close, saved)
            os.dup2(_STDERR, _STDOUT)
            stack.callback(os.dup2, saved, _STDOUT)
            stack.callback(real.flush)
        _kept.append(stack)
        try:
            yield
        finally:
            _kept.clear()


def print_json(line: dict[str, Any]) -> None:
    """Print the line of ``--json`` on stdout; non-finite numbers become null."""
    while _kept:
        _kept.pop().close()
    sys.stdout.write(json.dumps(to_json(line), allow_nan=False) + "\n")
    sys.stdout.flush()


def to_json(value: Any) -> Any:
    """Return ``value`` as JSON knows it: numpy scalars and paths resolved, no NaN."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        return to_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def format_value(value: Any) -> str:
    """Return ``value`` for a table cell: floats to four figures, nothing as a dash.

    Text is :func:`harmless` and on one line.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        return format_value(value.item())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return harmless(str(value)).replace("\n", "\\n")


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None
) -> Table:
    """Build a rich table; numbers are aligned right and, as names, never wrapped."""
    cells = [list(row) for row in rows]
    table = Table(
        title=None if title is None else Text(format_value(title), style="italic"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        values = [row[index] for row in cells]
        numeric = all(v is None or _is_number(v) for v in values)
        lengths = [len(format_value(value)) for value in values]
        lengths += [len(word) for word in str(column).split()]
        longest = max(lengths, default=0)
        table.add_column(
            Text(format_value(column)),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=index == 0,
            min_width=longest if numeric or longest <= SHORT_TEXT else None,
        )
    for row in cells:
        table.add_row(*(Text(format_value(value)) for value in row))
    return table


def make_fields(fields: dict[str, Any]) -> Table:
    """Build two columns of names and values."""
    table = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        shown = Text(format_value(value), overflow="fold")
        table.add_row(Text(harmless(name), style="dim"), shown)
    return table


def without_warnings(line: dict[str, Any]) -> dict[str, Any]:
    """Return a run's line for the screen, where its warnings were logged already."""
    return {name: value for name, value in line.items() if name != "warnings"}


def _is_number(value: Any) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return isinstance(value, int | float) or (kind != "" and kind in "iuf")


def _figures(progress: Progress) -> dict[str, str]:
    """Return the figures that matter; a dash for what is not known yet."""
    accuracy = progress.test_accuracy
    if accuracy is None:
        accuracy = progress.val_accuracy
    values = {
        "loss": (progress.loss, ".4f"),
        "accuracy": (accuracy, ".4f"),
        "versions/s": (progress.versions_per_s, ".1f"),
        "staleness": (progress.mean_staleness, ".2f"),
        "workers": (progress.n_workers, "d"),
    }
    return {
        name: "–" if value is None or math.isnan(value) else format(value, form)
        for name, (value, form) in values.items()
    }


def describe_progress(progress: Progress) -> str:
    """Return one plain line: round, loss, accuracy, speed, staleness, workers."""
    total = f"/{progress.n_rounds}" if progress.n_rounds else ""
    figures = "  ".join(f"{k} {v}" for k, v in _figures(progress).items())
    return (
        f"{progress.phase}  round {progress.round}{total}  {figures}  "
        f"{progress.elapsed_s:.0f} s"
    )


ProgressCallback = Callable[["Progress"], None]


@contextmanager
def progress_display(title: str, *, quiet: bool = False) -> Iterator[ProgressCallback]:
    """Yield a callback that shows progress: live on a terminal, else plain lines."""
    if quiet:
        yield lambda progress: None
    elif err.is_terminal:
        with _live(title) as callback:
            yield callback
    else:
        yield _plain_lines(title)


def _plain_lines(title: str) -> ProgressCallback:
    last: dict[str, Any] = {"at": -math.inf, "phase": None}

    def show(progress: Progress) -> None:
        now = time.monotonic()
        if now - last["at"] < PLAIN_EVERY_S and progress.phase == last["phase"]:
            return
        last.update(at=now, phase=progress.phase)
        note(f"{title}: {describe_progress(progress)}")

    return show


@contextmanager
def _live(title: str) -> Iterator[ProgressCallback]:
    from rich.live import Live

    title = harmless(title)
    start = Text(f"{title}  starting the cluster …", style="dim")
    last = {"at": -math.inf}
    with Live(start, console=err, refresh_per_second=8, transient=True) as live:

        def show(progress: Progress) -> None:
            now = time.monotonic()
            if now - last["at"] >= LIVE_EVERY_S:
                last["at"] = now
                live.update(_panel(title, progress))

        yield show


def _panel(title: str, progress: Progress) -> Any:
    """Draw the live display: a bar over a row of the figures that matter."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar

    total = progress.n_rounds or None
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(title, style="bold"),
        Text(harmless(progress.phase), style="cyan"),
        ProgressBar(total=total, completed=progress.round, width=32, pulse=not total),
        Text(f"{progress.round}/{total or '?'}  {progress.elapsed_s:.0f} s"),
    )
    figures = _figures(progress)
    if progress.dashboard:
        figures["dashboard"] = harmless(progress.dashboard)
    body = Table.grid(padding=(0, 2))
    body.add_row(
        *(Text.assemble((f"{k} ", "dim"), (v, "bold")) for k, v in figures.items())
    )
    return Group(head, body)
