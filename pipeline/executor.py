"""What the coordinator asks of an executor, and what it is told back.

An executor runs update and score tasks somewhere and hands their answers back as they
complete; it decides nothing. ``pipeline.virtual`` runs them in this process on a
virtual clock, ``pipeline.futures`` as Dask futures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from blocks.algorithm import LossRecord
from blocks.oracle import Counters
from pipeline.rounds import Packed

Points = dict[
    int, tuple[np.ndarray, np.ndarray | None, float]
]  # node: point, answer, std


@dataclass(frozen=True, slots=True)
class Base:
    """From what a worker rebuilds a group's states: a snapshot and the records since.

    ``packed`` is None at the run's start (the nodes' own first states).
    """

    packed: Packed | None
    step: int  # updates already in ``packed``
    seen: int = -1  # newest version folded by ``packed``
    records: tuple[LossRecord, ...] = ()  # folded by steps ``step``, ``step + 1``, …


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """One step of the blocks of a group (the blocks placed on one worker)."""

    group: int
    nodes: tuple[int, ...]
    step: int
    at_least: int  # fold a version not older than this
    base: Base | None = None  # only for a worker that lost the states
    want_states: bool = False  # send the states back (checkpoint)


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """One score of the joined newest accepted points."""

    version: int
    steps: tuple[int, ...]
    points: Points
    subset: int


@dataclass(frozen=True, slots=True)
class UpdateDone:
    """Answer of an ``UpdateTask``; ``outcome`` says whether a step was taken."""

    task: UpdateTask
    outcome: str  # "done", "idle" (nothing newer to fold) or "missed" (states lost)
    after: int = -1  # newest version that the states had folded before this step
    record: LossRecord | None = None
    points: Points = field(default_factory=dict)
    times: tuple[tuple[int, float, float], ...] = ()  # (node, start, end), run's clock
    counters: Counters = field(default_factory=Counters)
    states: Packed | None = None
    worker: str = ""


@dataclass(frozen=True, slots=True)
class ScoreDone:
    """A published score."""

    task: ScoreTask
    record: LossRecord
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A task that died with its worker; the coordinator submits it again."""

    task: UpdateTask | ScoreTask


Done = UpdateDone | ScoreDone | Lost


class Executor(Protocol):
    """Runs tasks; ``poll`` never waits longer than it is told."""

    n_workers: int

    def groups(self) -> list[tuple[int, ...]]:
        """Nodes by group: the blocks placed on one worker are updated together."""

    def submit_update(self, task: UpdateTask) -> None:
        """Queue an update; it starts when version ``at_least`` is published."""

    def submit_score(self, task: ScoreTask) -> None:
        """Queue a score; scores publish in the order of their versions."""

    def poll(self, timeout_s: float) -> list[Done]:
        """Answers since the last call; waits for the first at most ``timeout_s``."""

    def now(self) -> float:
        """Seconds on the run's clock (virtual or wall)."""
