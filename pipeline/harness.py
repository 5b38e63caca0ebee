"""The one training loop: rounds, scores, evaluations, budget, checkpoints, stopping."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline import memory, pack
from pipeline.batches import Split
from pipeline.cluster import Cluster
from pipeline.config import Budget, RunConfig
from pipeline.context import Context, RunSpec
from pipeline.engines import Engine
from pipeline.journal import Journal
from pipeline.pack import host
from pipeline.processors import kinds, processor, several
from pipeline.progress import Progress, Watcher
from pipeline.record import mean_staleness
from pipeline.rules import rules_of

logger = logging.getLogger(__name__)

PIECE_S = 4.0  # how long a synchronous piece should take
MAX_ROUNDS_AHEAD = 500
FIRST_ROUNDS = 4
SPLITS: tuple[Split, ...] = ("train", "val", "test")
CHECKPOINT_FORMAT = 2


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """What one round uses of each countable budget; 0 = nothing."""

    loss_values: int
    samples: float
    gradient_evals: float
    samples_once: float = 0.0  # of a whole run, beside its rounds

    def rounds_of_samples(self, limit: int) -> int:
        """Whole rounds within a budget of samples; at least 1."""
        return max(int((limit - self.samples_once) // self.samples), 1)


def round_costs(
    config: RunConfig, n_loss: int, n_train: int, n_layers: int = 1
) -> RoundCosts:
    """Mean costs of one round of all nodes, for a network of ``n_layers`` layers."""
    algorithm = config.algorithm
    if algorithm.scored:
        return RoundCosts(algorithm.n_probes, algorithm.n_probes * n_loss, 0)
    n_nodes = config.nodes or 1
    whole = getattr(algorithm, "data", "shard") == "whole"
    own = n_train if whole else n_train // n_nodes
    gradients = n_nodes / (n_layers if getattr(algorithm, "by_layer", False) else 1)
    samples = gradients * min(algorithm.batch_size or own, own)
    once, each = 0.0, 0.0
    if hasattr(algorithm, "extra_samples"):
        once, each = algorithm.extra_samples(n_loss)
    return RoundCosts(0, samples + n_nodes * each, gradients, n_nodes * once)


def costs_in(context: Context) -> RoundCosts:
    """``round_costs`` of a run."""
    data, n_layers = context.data, len(context.model.layout.layers)
    return round_costs(context.config, data.n_loss, data.n_train, n_layers)


def planned_rounds(budget: Budget, costs: RoundCosts) -> int:
    """Whole rounds within the countable budgets; 0 = open-ended (bytes, seconds)."""
    return min(_rounds(budget, costs).values(), default=0)


def binding(budget: Budget, costs: RoundCosts, rounds: int) -> str:
    """Name of the countable budget that ``planned_rounds`` stopped at."""
    found = (name for name, most in _rounds(budget, costs).items() if most == rounds)
    return next(found, "steps")


def _rounds(budget: Budget, costs: RoundCosts) -> dict[str, int]:
    """Rounds within each countable budget that is set and used."""
    found = {}
    if budget.steps is not None:
        found["steps"] = budget.steps
    if budget.loss_values is not None and costs.loss_values:
        found["loss_values"] = max(budget.loss_values // costs.loss_values, 1)
    if budget.samples is not None and costs.samples:
        found["samples"] = costs.rounds_of_samples(budget.samples)
    if budget.gradient_evals is not None and costs.gradient_evals:
        found["gradient_evals"] = max(
            int(budget.gradient_evals // costs.gradient_evals), 1
        )
    return found


class Training:
    """State that synchronous and asynchronous runs share, and what they do alike."""

    def __init__(
        self,
        spec: RunSpec,
        context: Context,
        checkpoint: Path,
        watch: Watcher | None,
        stop: threading.Event | None,
    ) -> None:
        self.spec = spec
        self.config = spec.config
        self.context = context
        self.checkpoint_path = checkpoint
        self.watch = watch or _ignore
        self.stop = stop or threading.Event()
        self.journal = Journal()
        self.limit = spec.n_steps
        self.eval_every = self.config.eval_every or max(1, self.limit // 20)
        self.dashboard: str | None = None
        self.of_the_code: dict[str, str] = {}  # what a user's network was at the start
        self.replaces = ""  # content hash of the run that this one takes the place of
        self.n_workers = 1
        self.cluster: Cluster | None = None  # that computes beside this process
        self._saved = self._given_back = time.monotonic()
        self._rate: tuple[float, int] = (time.monotonic(), -1)

    def tell(self, phase: str, done: int) -> None:
        """Show progress."""
        last = self.journal.evals[-1] if self.journal.evals else {}
        scored = self.config.algorithm.scored
        now, version = time.monotonic(), self.journal.version if scored else done
        if now - self._given_back > memory.EVERY_S:
            memory.give_back()
            self._given_back = now
        then, before = self._rate
        speed = (version - before) / (now - then) if now > then else 0.0
        self._rate = (now, version)
        staleness = 0.0 if self.config.barrier else mean_staleness(self.journal, 200)
        self.watch(
            Progress(
                phase=phase,
                round=done,
                n_rounds=self.limit,
                version=self.journal.version,
                loss=self.journal.loss
                if self.journal.version >= 0
                else last.get("train_loss", math.nan),
                test_accuracy=last.get("test_accuracy"),
                val_accuracy=last.get("val_accuracy"),
                versions_per_s=speed,
                mean_staleness=staleness,
                n_workers=self.n_workers,
                elapsed_s=self.journal.wall_time_s,
                dashboard=self.dashboard,
            )
        )

    def over_seconds(self) -> bool:
        """Whether the budget of seconds is used up."""
        seconds = self.config.budget.seconds
        return seconds is not None and self.journal.wall_time_s >= seconds

    def over_bytes(self) -> bool:
        """Whether the budget of bytes is used up."""
        limit = self.config.budget.bytes
        return limit is not None and self.journal.counters.bytes_moved >= limit

    def note_processors(self) -> None:
        """Add to the journal what this process and the workers compute with.

        Says so when that is no longer of one kind.
        """
        others = self.cluster.processors.values() if self.cluster else ()
        found = [*self.journal.processors, processor(), *others]
        now = kinds(found, self.config.device)
        if now != self.journal.processors:
            self.journal.processors = now
            for text in several(self.spec.run_id, now):
                logger.warning(text)

    def save(self, kind: str, done: int, states: Any) -> None:
        """Write the checkpoint; the record up to it is part of it."""
        self.note_processors()
        pack.save(
            self.checkpoint_path,
            {
                "format": CHECKPOINT_FORMAT,
                "kind": kind,
                "config": self.config.record(),
                "run_id": self.spec.run_id,
                "rules": rules_of(self.config),
                "replaces": self.replaces,
                **self.of_the_code,
                "store": self.spec.store,
                "content_sha256": self.spec.content_sha256,
                "n_steps": self.spec.n_steps,
                "params": self.spec.params,
                "buffers": self.spec.buffers,
                "done": done,
                "journal": self.journal.to_plain(),
                "states": states,
            },
        )
        self._saved = time.monotonic()

    @property
    def save_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved >= self.config.checkpoint_every_s


class BarrierTraining(Training):
    """Synchronous rounds, a piece at a time; evaluations and checkpoints end one."""

    def run(self, engine: Engine, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Train from round ``start``; returns the final parameters and buffers."""
        self.n_workers = engine.n_workers
        if not self.journal.evals:
            self.journal.counters.add(engine.init_cost)
            self._evaluate(engine, start)
        elif start:
            self._catch_up(engine, start)
        self._done = self._saved_done = start
        try:
            self._rounds(engine)
        except BaseException:
            if self._done > self._saved_done:  # a lost cluster loses no finished piece
                self.save("barrier", self._done, engine.snapshot())
            raise
        return self.context.solution(engine.messages())

    def _catch_up(self, engine: Engine, done: int) -> None:
        """Do what an earlier process did not come to after its last checkpoint."""
        self._decide(done, broke=False)
        ended = self.journal.stop_reason not in ("", "interrupted")
        missing = self.journal.evals[-1]["step"] < done
        if missing and (ended or done % self.eval_every == 0):
            self._evaluate(engine, done)

    def _rounds(self, engine: Engine) -> None:
        pace = 0.0  # seconds a round
        while not self.journal.stop_reason:
            self.tell("training", self._done)
            n_rounds = self._next_piece(self._done, pace)
            began = time.monotonic()
            outcome = engine.run(self._done, n_rounds, self._steps())
            spent = time.monotonic() - began
            self.journal.wall_time_s += spent
            self.journal.add(outcome)
            self.journal.n_reruns, self.n_workers = engine.n_reruns, engine.n_workers
            self._done += outcome.n_done
            pace = spent / max(outcome.n_done, 1)
            self._decide(self._done, outcome.n_done < n_rounds)
            due = self._done % self.eval_every == 0 or self._by_time()
            reason: str = self.journal.stop_reason
            interrupted = reason == "interrupted"
            if due or (reason and not interrupted):
                self._evaluate(engine, self._done)
            if interrupted or self.save_due:
                self.save("barrier", self._done, engine.snapshot())
                self._saved_done = self._done
            if interrupted and not due:  # to be seen; a resumed run does not hold it
                self._evaluate(engine, self._done)

    def _steps(self) -> tuple[int, ...]:
        """Steps that every node has taken; () where all have taken every round."""
        if self.config.barrier:
            return ()
        taken = [0] * self.context.n_nodes
        for node, step, *_ in self.journal.updates:
            taken[node] = max(taken[node], step + 1)
        return tuple(taken)

    def _next_piece(self, done: int, pace: float) -> int:
        ahead = (
            int(min(max(PIECE_S / pace, 1), MAX_ROUNDS_AHEAD)) if pace else FIRST_ROUNDS
        )
        seconds = self.config.budget.seconds
        if seconds is not None and pace:
            left = max(seconds - self.journal.wall_time_s, 0.0)
            ahead = min(ahead, max(math.ceil(left / pace), 1))
        limits = [ahead]
        if self.config.budget.bytes is not None:
            limits.append(self._rounds_of_bytes(self.config.budget.bytes, done))
        if self.limit:
            limits.append(self.limit - done)
        if self.limit or self.config.eval_every:
            limits.append(self.eval_every - done % self.eval_every)
        return max(min(limits), 1)

    def _rounds_of_bytes(self, limit: int, done: int) -> int:
        """Rounds until ``limit`` is reached: all rounds move equally many bytes."""
        moved = self.journal.counters.bytes_moved
        return math.ceil((limit - moved) * done / moved) if moved else 1

    def _by_time(self) -> bool:
        """Open-ended runs are evaluated at every twentieth of their seconds."""
        if self.limit or self.config.eval_every:
            return False
        every = (self.config.budget.seconds or 20 * PIECE_S) / 20
        return self.journal.wall_time_s - self.journal.evals[-1]["wall_time_s"] >= every

    def _decide(self, done: int, broke: bool) -> None:
        journal = self.journal
        costs = costs_in(self.context)
        if broke:
            journal.stop_reason = "diverged: non-finite loss"
        elif self.limit and done >= self.limit:
            name = binding(self.config.budget, costs, self.limit)
            journal.stop_reason = f"budget: {name}"
        elif self.over_seconds():
            journal.stop_reason = "budget: seconds"
        elif self.over_bytes():
            journal.stop_reason = "budget: bytes"
        elif self.stop.is_set():
            journal.stop_reason = "interrupted"

    def _evaluate(self, engine: Engine, done: int) -> None:
        began = time.monotonic()
        params, buffers = self.context.solution(engine.messages())
        sums = engine.evaluate(params, buffers, SPLITS)
        row = self.journal.add_eval(
            done,
            sums,
            host(params),
            None if buffers is None else host(buffers),
            self.journal.wall_time_s,
            self.journal.version,
            replace(self.journal.counters),
        )
        self.journal.eval_time_s += time.monotonic() - began
        if not math.isfinite(row["train_loss"]):
            self.journal.stop_reason = "diverged: non-finite loss"


def _ignore(_: Progress) -> None:
    pass
