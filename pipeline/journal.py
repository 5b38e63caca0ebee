"""What a run has done so far: events, counters, evaluations; saved as a whole."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blocks.algorithm import LossRecord
from blocks.oracle import Counters
from pipeline.batches import Split
from pipeline.processors import Processor
from pipeline.rounds import Outcome

Update = tuple[int, int, int, float, float, int]  # node, step, seen, start, end, worker

REPORTED: tuple[Split, ...] = ("train", "val", "test")


@dataclass(slots=True)
class Journal:
    """Events and totals of one run; everything its dataset and its replay need."""

    updates: list[Update] = field(default_factory=list)
    inboxes: list[tuple[int, ...]] = field(default_factory=list)  # steps used, by node
    scores: list[tuple[LossRecord, float, float]] = field(default_factory=list)
    evals: list[dict[str, float]] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    worker_names: list[str] = field(default_factory=list)
    processors: list[Processor] = field(default_factory=list)  # kinds that computed
    wall_time_s: float = 0.0
    eval_time_s: float = 0.0
    total_time_s: float = 0.0  # of earlier processes, before a resume
    n_reruns: int = 0
    best_loss: float = math.inf
    best_params: np.ndarray | None = None
    best_buffers: np.ndarray | None = None
    stop_reason: str = ""

    @property
    def version(self) -> int:
        """Newest published version, −1 before the first."""
        return self.scores[-1][0].version if self.scores else -1

    @property
    def loss(self) -> float:
        """Newest global loss."""
        return self.scores[-1][0].loss if self.scores else math.nan

    def add(self, outcome: Outcome) -> None:
        """Append what a piece has done; workers are given as names."""
        in_time = outcome.updates
        if not outcome.in_order:
            in_time = sorted(in_time, key=lambda u: (u[4], u[0]))
        self.inboxes += outcome.inboxes
        for node, step, seen, start, end, worker in in_time:
            index = self.worker(worker)
            self.updates.append((node, step, seen, start, end, index))
        self.scores += outcome.scores
        self.counters.add(outcome.counters)

    def worker(self, name: str) -> int:
        """Index of a worker's name, added if new."""
        if name not in self.worker_names:
            self.worker_names.append(name)
        return self.worker_names.index(name)

    def add_eval(
        self,
        step: int,
        sums: dict[Split, np.ndarray],
        params: np.ndarray,
        buffers: np.ndarray | None,
        wall_time_s: float,
        version: int,
        counters: Counters,
    ) -> dict[str, float]:
        """Append an evaluation; keep the parameters of the smallest validation loss."""
        row = {
            "step": step,
            "version": version,
            "wall_time_s": wall_time_s,
            "n_loss_evals": counters.n_loss_evals,
            "n_samples": counters.n_samples,
            "n_gradient_evals": counters.n_gradient_evals,
            "bytes_moved": counters.bytes_moved,
        }
        for split in REPORTED:
            total = np.zeros(3)
            for shard in sums[split]:
                total += shard
            n = total[2]
            row[f"{split}_loss"] = total[0] / n if n else math.nan
            row[f"{split}_accuracy"] = total[1] / n if n else math.nan
        self.evals.append(row)
        judged = row["val_loss"] if sums["val"][:, 2].sum() else row["train_loss"]
        if self.best_params is None or judged < self.best_loss:
            self.best_loss = judged
            self.best_params, self.best_buffers = params, buffers
        return row

    def to_plain(self) -> dict[str, Any]:
        """Arrays and numbers, for a checkpoint."""
        records = [r for r, _, _ in self.scores]
        return {
            "updates": np.array(self.updates, dtype=np.float64).reshape(-1, 6),
            "inboxes": np.array(self.inboxes, dtype=np.int64),
            "versions": np.array([r.version for r in records], dtype=np.int64),
            "losses": np.array([r.losses for r in records], dtype=np.float64),
            "steps": np.array([r.steps for r in records], dtype=np.int64),
            "subsets": np.array([r.subset for r in records], dtype=np.int64),
            "times": np.array([t[1:] for t in self.scores], dtype=np.float64).reshape(
                -1, 2
            ),
            "eval_names": tuple(self.evals[0]) if self.evals else (),
            "evals": np.array([list(r.values()) for r in self.evals], dtype=np.float64),
            "counters": tuple(getattr(self.counters, n) for n in Counters.__slots__),
            "worker_names": tuple(self.worker_names),
            "processors": json.dumps(self.processors),
            "numbers": (
                self.wall_time_s,
                self.eval_time_s,
                self.total_time_s,
                self.n_reruns,
                self.best_loss,
            ),
            "best_params": self.best_params,
            "best_buffers": self.best_buffers,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], run_id: str) -> Journal:
        """Rebuild what ``to_plain`` took apart."""
        scores = [
            (
                LossRecord(
                    run_id,
                    int(version),
                    tuple(float(x) for x in losses),
                    tuple(int(x) for x in steps),
                    int(subset),
                ),
                float(start),
                float(end),
            )
            for version, losses, steps, subset, (start, end) in zip(
                plain["versions"],
                plain["losses"],
                plain["steps"],
                plain["subsets"],
                plain["times"],
                strict=True,
            )
        ]
        wall, evaluation, total, reruns, best = plain["numbers"]
        return cls(
            updates=[
                (int(n), int(k), int(v), float(a), float(b), int(w))
                for n, k, v, a, b, w in plain["updates"]
            ],
            inboxes=[tuple(int(s) for s in row) for row in plain["inboxes"]],
            scores=scores,
            evals=[
                dict(zip(plain["eval_names"], row, strict=True))
                for row in plain["evals"]
            ],
            counters=Counters(*plain["counters"]),
            worker_names=list(plain["worker_names"]),
            processors=json.loads(plain.get("processors", "[]")),
            wall_time_s=wall,
            eval_time_s=evaluation,
            total_time_s=total,
            n_reruns=reruns,
            best_loss=best,
            best_params=plain["best_params"],
            best_buffers=plain["best_buffers"],
        )
