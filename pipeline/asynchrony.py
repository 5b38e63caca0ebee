"""What updates and scores of one run did when: staleness, who idled, what waited.

A store says which worker made an update, and when; of a score it says when, and not on
which worker. Time in which a worker makes no update is therefore split by whether a
score was under way: then it scored or waited for one. Otherwise it idled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Activity", "Window", "activity", "read_activity", "window"]

_NAMES = (
    *("update_node", "update_step", "seen_version", "scored_version"),
    *("start_s", "end_s", "worker", "score_start_s", "score_end_s"),
)


@dataclass(frozen=True, slots=True)
class Activity:
    """What a run's updates and scores did, over all of the run."""

    staleness: np.ndarray  # (S,) updates by versions, 0 first; empty: undefined in all
    n_unscored: int  # updates without a staleness
    updates: np.ndarray  # (nodes,) updates of each node
    workers: tuple[str, ...]  # names, of those that made an update
    updating: np.ndarray  # (workers,) share of the span in which it made an update
    scoring: np.ndarray  # (workers,) share without one while a score was under way
    idle: np.ndarray  # (workers,) share with neither
    span_s: float  # from the first start to the last end
    n_scores: int
    barrier: float | None  # share of worker time spent waiting for slower updates


@dataclass(frozen=True, slots=True)
class Window:
    """Updates and scores of a bounded part of a run, for a timeline."""

    start_s: float
    end_s: float
    row: np.ndarray  # (U,) position in ``Activity.workers``
    node: np.ndarray  # (U,)
    updates: np.ndarray  # (U, 2) start and end, s
    scores: np.ndarray  # (V, 2) start and end, s


def read_activity(store: Path) -> dict[str, Any]:
    """Return the variables of a run store that `activity` and `window` need.

    Raises
    ------
    RunChanged — if the store is not what was written.
    """
    from pipeline.run_store import stored_run

    run = stored_run(store, _NAMES)
    names = [str(name) for name in run.attrs.get("worker_names", [])]
    return dict(zip(_NAMES, run.read(_NAMES), strict=True)) | {"worker_names": names}


def activity(run: dict[str, Any], *, synchronous: bool) -> Activity | None:
    """Return what a run's updates and scores did; None if it has no update.

    Parameters
    ----------
    run : from `read_activity`.
    synchronous : whether there is a barrier: the time lost at it is from the end of a
        worker's updates of a round to that of the slowest worker's. Only for runs with
        scores, since replicas need not all meet at every step. Waiting within a score
        is not in it: a store does not tell it from scoring.
    """
    start, end, worker = run["start_s"], run["end_s"], run["worker"]
    if not len(start):
        return None
    stale = run["scored_version"] - run["seen_version"] - 1
    known = (run["scored_version"] >= 0) & (run["seen_version"] >= 0)
    scores = np.stack([run["score_start_s"], run["score_end_s"]], axis=1)
    first = float(min(start.min(), scores.min(initial=np.inf)))
    span = float(max(end.max(), scores.max(initial=-np.inf))) - first
    rows = np.unique(worker)
    spans = [np.stack([start, end], axis=1)[worker == row] for row in rows]
    updating = np.array([covered(own) for own in spans])
    either = np.array([covered(np.concatenate([own, scores])) for own in spans])
    whole = max(span, np.finfo(float).tiny)
    barrier = None
    if synchronous and len(scores):
        lost = _lost_at_barrier(run["update_step"], worker, end)
        barrier = lost / (whole * len(rows))
    return Activity(
        np.bincount(stale[known].astype("int64").clip(min=0)),
        int((~known).sum()),
        np.bincount(run["update_node"]),
        tuple(_name(run["worker_names"], int(row)) for row in rows),
        updating / whole,
        (either - updating) / whole,
        1 - either / whole,
        span,
        len(scores),
        barrier,
    )


def window(run: dict[str, Any], seconds: float = 5.0, most: int = 1200) -> Window:
    """Return the middle of a run: at most some seconds, updates and scores.

    Parameters
    ----------
    run : from `read_activity`, with at least one update.
    seconds : the longest window.
    most : updates and scores together; the window is halved until it holds no more, or
        holds a single instant.
    """
    rows, row = np.unique(run["worker"], return_inverse=True)
    del rows
    updates = np.stack([run["start_s"], run["end_s"]], axis=1)
    scores = np.stack([run["score_start_s"], run["score_end_s"]], axis=1)
    both = np.concatenate([updates, scores])
    low, high = float(both.min()), float(both.max())
    middle = (low + high) / 2
    width = min(seconds, high - low)
    for _ in range(60):
        a, b = middle - width / 2, middle + width / 2
        inside, scored = _overlaps(updates, a, b), _overlaps(scores, a, b)
        if inside.sum() + scored.sum() <= most:
            break
        width /= 2
    kept = np.flatnonzero(inside)[:most]
    return Window(
        a,
        b,
        row[kept],
        run["update_node"][kept],
        updates[kept].clip(a, b),
        scores[scored][:most].clip(a, b),
    )


def covered(spans: np.ndarray) -> float:
    """Return the length of the union of spans, (n, 2)."""
    if not len(spans):
        return 0.0
    ordered = spans[np.argsort(spans[:, 0], kind="stable")]
    reached = np.maximum.accumulate(ordered[:, 1])
    before = np.r_[-np.inf, reached[:-1]]
    return float((reached - np.maximum(ordered[:, 0], before)).clip(min=0).sum())


def _lost_at_barrier(step: np.ndarray, worker: np.ndarray, end: np.ndarray) -> float:
    """Return the s that workers waited, all together, for the last of each round."""
    rounds, of_round = np.unique(step, return_inverse=True)
    rows, of_row = np.unique(worker, return_inverse=True)
    ends = np.full((len(rounds), len(rows)), -np.inf)
    np.maximum.at(ends, (of_round, of_row), end)
    waited = ends.max(axis=1, keepdims=True) - ends
    return float(waited[np.isfinite(waited)].sum())


def _overlaps(spans: np.ndarray, start: float, end: float) -> np.ndarray:
    return np.asarray((spans[:, 1] >= start) & (spans[:, 0] <= end))


def _name(names: list[str], row: int) -> str:
    return names[row] if 0 <= row < len(names) else str(row)
