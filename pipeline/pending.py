"""Futures under way, whose answers are taken as they come."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError

What = TypeVar("What")
FETCH_S = 30.0  # to fetch answers that are there
SCHEDULER_LOST = ("scheduler-connection-lost", "scheduler-restart")


class AnswerLost(RuntimeError):
    """A worker took an answer along before it could be fetched."""


class Pending(Generic[What]):
    """What each future stands for, and which workers must live for it to be run.

    Nothing here waits for a particular future: an answer is taken whenever it comes,
    and a future that will have none is named as lost.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._futures: dict[str, tuple[Future[Any], What, set[str]]] = {}
        self._lock = threading.Lock()

    def add(self, future: Future[Any], what: What, needs: Iterable[str]) -> None:
        """Watch a future; ``needs``: addresses of the workers that it is bound to."""
        with self._lock:
            self._futures[str(future.key)] = (future, what, set(needs))
        future.add_done_callback(self._finished.put)

    def take(
        self, timeout_s: float, alive: Collection[str]
    ) -> tuple[list[tuple[What, Any]], list[What]]:
        """Answers since the last call, and what is lost.

        Waits for the first answer at most ``timeout_s``. Lost is what was cancelled,
        what died with too many workers, and what is bound to one not in ``alive``:
        Dask itself runs that elsewhere, but not always. If no worker was left, it binds
        a task to one that is gone for good, and those that come later never get it,
        ``allow_other_workers`` or not.

        Raises
        ------
        Exception — whatever a task raised.
        """
        done = self._done(timeout_s)
        ready = [(f, what) for f, what in done if f.status == "finished"]
        values: list[Any] = []
        with contextlib.suppress(AnswerLost):
            values = fetch(self._client, [f for f, _ in ready], errors="skip")
        lost: list[What] = []
        answers: list[tuple[What, Any]] = []
        if len(values) == len(ready):
            answers = [(w, v) for (_, w), v in zip(ready, values, strict=True)]
        else:  # a worker died between its answer and our asking
            lost = [what for _, what in ready]
        for future, what in done:
            if scheduler_lost(future):
                raise RuntimeError(
                    "`cluster` must keep its scheduler; it forgot "
                    f"{future.key}. Start one, then resume the run."
                )
            if future.status == "error":
                error = future.exception()
                if not isinstance(error, KilledWorker):
                    raise error
            if future.status != "finished":
                lost.append(what)
        return answers, lost + self._stranded(set(alive))

    def _done(self, timeout_s: float) -> list[tuple[Future[Any], What]]:
        try:
            finished = [self._finished.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while True:
            try:
                finished.append(self._finished.get_nowait())
            except queue.Empty:
                break
        found = []
        with self._lock:
            for future in finished:
                known = self._futures.pop(str(future.key), None)
                if known is not None:
                    found.append((future, known[1]))
        return found

    def _stranded(self, alive: set[str]) -> list[What]:
        with self._lock:
            gone = {k: one for k, one in self._futures.items() if not one[2] <= alive}
            for key in gone:
                del self._futures[key]
        if gone:
            self._client.cancel([future for future, *_ in gone.values()])
        return [what for _, what, _ in gone.values()]

    def cancel(self) -> None:
        """Take back all that is under way."""
        with self._lock:
            rest = [future for future, *_ in self._futures.values()]
        if self._client.status == "running":
            self._client.cancel(rest)


def fetch(
    client: Client,
    futures: Sequence[Future[Any]],
    timeout_s: float = FETCH_S,
    errors: Literal["raise", "skip"] = "raise",
) -> list[Any]:
    """Values of finished futures.

    Raises
    ------
    AnswerLost — if they cannot be had in time. Dask itself waits without a limit for a
        value that died with its worker, and may bind its task to one that is gone.
    """

    async def ask() -> list[Any]:
        values: Any = client.gather(futures, errors=errors, asynchronous=True)
        task: asyncio.Task[list[Any]] = asyncio.ensure_future(values)
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            task.cancel()
            raise AnswerLost(f"no answer could be fetched within {timeout_s:g} s")
        return task.result()

    found: list[Any] = client.sync(ask)
    return found


def scheduler_lost(future: Future[Any]) -> bool:
    """Whether a future ended because the client lost its scheduler.

    A scheduler that is there cancels, too: what was submitted just when a worker took
    an input of it along. That is lost, and can be submitted again.
    """
    if future.status != "cancelled":
        return False
    try:
        future.result()
    except FutureCancelledError as err:
        return err.reason in SCHEDULER_LOST
    return False
