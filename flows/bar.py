"""A bar in Prefect's UI, kept up to date without making anybody wait."""

from __future__ import annotations

import contextvars
import threading
from typing import cast
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

END_S = 10.0  # longest wait for the bar's last state to arrive


class BarArtifact:
    """A bar that shows the newest of what it is told.

    A thread of its own speaks to the API: a server that answers late (one on SQLite may
    lock itself out for a minute) holds up no training, and one that does not answer
    costs a warning. States that were overtaken are never sent.
    """

    def __init__(self, key: str) -> None:
        self._logger = get_run_logger()
        self._key = key
        self._id: UUID | None = None
        self._newest: tuple[float, str] | None = None
        self._ended = False
        self._changed = threading.Condition()
        context = contextvars.copy_context()  # says which flow or task run this is
        self._thread = threading.Thread(
            target=context.run, args=(self._serve,), name=key, daemon=True
        )
        self._thread.start()
        self.send(0.0, "starting")

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` have ended."""
        self.send(100.0 * done / max(total, 1), f"{done} of {total} runs have ended")

    def send(self, percent: float, description: str) -> None:
        """Set the bar and the words below it; returns at once."""
        with self._changed:
            self._newest = (percent, description)
            self._changed.notify()

    def close(self) -> None:
        """Let the newest state arrive, for END_S at most; nothing is sent after it."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(END_S)
        if self._thread.is_alive():
            self._logger.warning("no answer from Prefect about a progress artifact")

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._ended)
                if self._newest is None:
                    return
                percent, description = self._newest
                self._newest = None
            self._set(percent, description)

    def _set(self, percent: float, description: str) -> None:
        try:
            if self._id is None:
                self._id = cast(
                    "UUID",  # the synchronous half of a function that is both
                    create_progress_artifact(
                        percent, key=self._key, description=description
                    ),
                )
            else:
                update_progress_artifact(self._id, percent, description=description)
        except (httpx.HTTPError, OSError) as error:
            self._logger.warning("no progress artifact: %r", error)
