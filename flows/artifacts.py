"""What a flow run shows in Prefect's UI: tags, progress, tables, pictures."""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect import get_client, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from flows.bar import BarArtifact
from flows.console import describe_progress, format_value, to_json

if TYPE_CHECKING:
    from pipeline.progress import Progress

ARTIFACT_EVERY_S = 2.0  # seconds between updates of the progress artifact
_MARKS = re.compile(r"[|<>\[\]`\\]")  # of tables, HTML, links and code
LOG_EVERY_S = 15.0  # seconds between progress lines in the run's log


def slug(text: str) -> str:
    """Return ``text`` as Prefect allows it in names and keys: a-z, 0-9, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def parameter(name: str) -> Any:
    """Return a parameter of the current flow run, for its name."""
    return flow_run.parameters[name]


def add_tags(*tags: str) -> None:
    """Add tags to the current flow run, however it was started."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    wanted = sorted({*context.flow_run.tags, *(tag for tag in tags if tag)})
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=wanted)


def publish_table(key: str, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Create a table artifact; equal keys become versions of one artifact."""
    table = [to_json(dict(row)) for row in rows]
    create_table_artifact(key=slug(key), table=table, description=title)


def publish_markdown(key: str, text: str, title: str) -> None:
    """Create a markdown artifact."""
    create_markdown_artifact(key=slug(key), markdown=text, description=title)


def inline_png(picture: bytes, caption: str) -> str:
    """Return markdown that carries its picture within, so that it needs no server."""
    data = base64.b64encode(picture).decode("ascii")
    return f"![{caption}](data:image/png;base64,{data})"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with equal keys as a markdown table, in which text is text."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [_cell(row[c]) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else value
    return _MARKS.sub(r"\\\g<0>", format_value(text))


class ProgressArtifact:
    """Training progress as a progress artifact and a few log lines.

    Call it with every :class:`Progress`; it speaks to the API at most every
    ``every_s`` seconds.
    """

    every_s = ARTIFACT_EVERY_S

    def __init__(self, key: str) -> None:
        self._logger = get_run_logger()
        self._sent_at = time.monotonic()
        self._logged_at = -math.inf
        self._description = "starting"
        self._bar = BarArtifact(slug(key))

    def __call__(self, progress: Progress) -> None:
        """Show ``progress`` if the last update is old enough."""
        now = time.monotonic()
        self._description = describe_progress(progress)
        if now - self._sent_at >= self.every_s:
            self._sent_at = now
            done = progress.round / progress.n_rounds if progress.n_rounds else 0.0
            self._bar.send(100.0 * min(max(done, 0.0), 1.0), self._description)
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            self._logger.info("%s", self._description)

    def finish(self, status: str) -> None:
        """Set the bar to its end."""
        self._bar.send(100.0, f"{status}: {self._description}")
        self.close()

    def close(self) -> None:
        """End the bar as it is."""
        self._bar.close()
