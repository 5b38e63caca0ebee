"""The shared global loss: one publisher, many readers, never backwards."""

from __future__ import annotations

import time
from typing import Any, Protocol

from blocks.algorithm import LossRecord
from pipeline.greeting import greeted

MAX_BYTES = 64_000  # of a record in the Variable
READ_TIMEOUT_S = 10.0  # the Variable exists while its run does
POLL_S = 0.002  # between two looks at a Variable that is too old


class BoardError(RuntimeError):
    """The shared loss is missing, stale, or belongs to another run."""


def record_bytes(record: LossRecord) -> int:
    """Bytes of a record's numbers: 8 a loss, 4 a scored step, 16 for the rest."""
    return 8 * len(record.losses) + 4 * len(record.steps) + 16


class LossBoard(Protocol):
    """Where the newest ``LossRecord`` of one run is published and read."""

    def publish(self, record: LossRecord) -> bool:
        """Publish ``record`` unless its version is not higher; True when it was set."""

    def newest(self, at_least: int, timeout_s: float) -> LossRecord:
        """Newest record, whose version is ``at_least`` or higher."""


def pinned(
    board: LossBoard, version: int, known: LossRecord | None, timeout_s: float
) -> LossRecord:
    """Read the board for an update that must fold exactly ``version``.

    What is read is used when it is that version; when the board is already newer (a
    re-run after a worker's death), ``known`` is used: the record that came as the
    update's input.

    Raises
    ------
    BoardError — if the board stays older than ``version`` for ``timeout_s``, or is
        newer and ``known`` is not that version.
    """
    read = board.newest(version, timeout_s)
    if read.version == version:
        return read
    if known is None or known.version != version:
        raise BoardError(
            f"`loss board` must hold version {version} or come with it; got version "
            f"{read.version} and no input. Resume the run."
        )
    return known


class LocalBoard:
    """A board inside one process."""

    def __init__(self) -> None:
        self._record: LossRecord | None = None

    def publish(self, record: LossRecord) -> bool:
        """Publish ``record`` unless its version is not higher."""
        if self._record is not None and record.version <= self._record.version:
            return False
        self._record = record
        return True

    def newest(self, at_least: int, timeout_s: float) -> LossRecord:
        """Newest record; nothing else runs in this process, so it never waits."""
        if self._record is None or self._record.version < at_least:
            raise BoardError(
                f"`loss board` must hold version {at_least}; got "
                f"{self._record and self._record.version}. Publish it first."
            )
        return self._record


def board_of_task(name: str, run_id: str) -> VariableBoard:
    """Return the board on which a Dask task reads and publishes."""
    from distributed import get_client

    return VariableBoard(name, run_id, client=greeted(get_client))


class VariableBoard:
    """A board on a ``distributed.Variable`` named by the run.

    The Variable holds one mapping of host numbers (≤ 64 kB). The name carries the run
    id and a nonce, so that a value left over from another run is never read as this
    run's.
    """

    def __init__(self, name: str, run_id: str, client: Any = None) -> None:
        from distributed import Variable

        self._run_id = run_id
        self._variable = Variable(name, client=client)
        self._highest: int | None = None

    def open(self) -> None:
        """Give the Variable a value (version −1), so that no read waits for ever."""
        self._set(LossRecord(self._run_id, -1, (), ()))

    def version(self) -> int:
        """Newest published version, −1 before the first."""
        self._highest = self._get(READ_TIMEOUT_S).version
        return self._highest

    def publish(self, record: LossRecord) -> bool:
        """Publish ``record`` unless its version is not higher (a re-run's are not)."""
        if self._highest is None:
            self.version()
        assert self._highest is not None
        if record.version <= self._highest:
            return False
        self._set(record)
        self._highest = record.version
        return True

    def _set(self, record: LossRecord) -> None:
        if record_bytes(record) > MAX_BYTES:
            raise ValueError(
                f"`loss record` must be at most {MAX_BYTES} bytes; got "
                f"{record_bytes(record)} for {len(record.losses)} losses of "
                f"{len(record.steps)} nodes. Use fewer probes or blocks."
            )
        self._variable.set(
            {
                "run_id": record.run_id,
                "version": record.version,
                "losses": list(record.losses),
                "steps": list(record.steps),
                "subset": record.subset,
            },
            timeout=READ_TIMEOUT_S,
        )

    def _get(self, timeout_s: float) -> LossRecord:
        try:
            value = self._variable.get(timeout=timeout_s)
        except TimeoutError as err:
            raise BoardError(
                f"`loss board` must be published before it is read; got nothing within "
                f"{timeout_s:g} s. Resume the run."
            ) from err
        if value["run_id"] != self._run_id:
            raise BoardError(
                f"`loss board` must belong to run {self._run_id}; got "
                f"{value['run_id']}. Two runs share a Variable: resume one at a time."
            )
        return LossRecord(
            value["run_id"],
            value["version"],
            tuple(value["losses"]),
            tuple(value["steps"]),
            value["subset"],
        )

    def newest(self, at_least: int, timeout_s: float) -> LossRecord:
        """Newest record; polls until ``at_least`` is reached."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            record = self._get(min(left, READ_TIMEOUT_S))
            if record.version >= at_least:
                return record
            if time.monotonic() > deadline:
                raise BoardError(
                    f"`loss board` must reach version {at_least} within "
                    f"{timeout_s:g} s; got {record.version}. Is the publisher's worker "
                    "alive?"
                )
            time.sleep(POLL_S)

    def delete(self) -> None:
        """Remove the Variable from the scheduler."""
        self._variable.delete()
