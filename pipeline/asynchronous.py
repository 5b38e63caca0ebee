"""Asynchronous and bounded runs: the coordinator's loop with evaluations beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pipeline.batches import Split
from pipeline.context import Context
from pipeline.coordinator import Coordinator, Group, Limits
from pipeline.executor import Executor, Points
from pipeline.harness import SPLITS, Training, binding, costs_in
from pipeline.jobs import JobExecutor
from pipeline.pack import host
from pipeline.replicas import ReplicaCoordinator
from pipeline.rounds import Outcome
from pipeline.updates import message_of, point_of

POLL_S = 0.5
TELL_S = 0.5

Sums = dict[Split, np.ndarray]


class Evaluation(Protocol):
    """An evaluation under way."""

    def ready(self) -> bool:
        """Whether ``result`` would not wait."""

    def result(self) -> tuple[Sums, float]:
        """Sums by split, and the worker-seconds that they took."""


Evaluator = Callable[[Tensor, Tensor | None], Evaluation]


class FreeTraining(Training):
    """Drives a coordinator; evaluations run beside the training.

    The worker-seconds that evaluations took, divided by the number of workers, are
    taken off the wall time: an asynchronous run has no pause in which to evaluate.
    """

    coordinator: Any  # Coordinator, or ReplicaCoordinator
    executor: Any  # Executor, or JobExecutor

    def prepare(self, executor: Executor, state: dict[str, Any] | None = None) -> None:
        """Set up the coordinator, at the start or from a checkpoint's ``state``."""
        context = self.context
        points: Points = {
            n: point_of(context.init_node(n)[1]) for n in range(context.n_nodes)
        }
        self.executor = executor
        self.n_workers = executor.n_workers
        self.coordinator = Coordinator(
            executor,
            points,
            self.config.staleness_bound,
            self._limits(),
            context.subset,
            context.data.n_loss,
            keep_states=context.activity is not None,
        )
        if state is not None:
            restore(self.coordinator, state, self.journal.version)

    def _limits(self) -> Limits:
        budget, costs = self.config.budget, costs_in(self.context)
        versions = [
            max(int(limit // cost), 1)
            for limit, cost in (
                (budget.loss_values, costs.loss_values),
                (budget.samples, costs.samples),
            )
            if limit is not None and cost
        ]
        return Limits(budget.steps, min(versions, default=None))

    def run(self, evaluate: Evaluator) -> tuple[Tensor, Tensor | None]:
        """Train until the budget is used; returns the final parameters and buffers."""
        executor = self.executor
        self._evaluations: list[tuple[Evaluation, dict[str, Any]]] = []
        self._evaluate, self._busy_s = evaluate, 0.0
        self._snapped: dict[int, int] = {}
        self._before, self._began = self.journal.wall_time_s, executor.now()
        self._told = self._heard = time.monotonic()
        self._next_eval = self._mean_step() // self.eval_every * self.eval_every
        if not self.journal.evals:
            self._snapshot()
            self._collect(wait=True)
            self._began = executor.now()
            self._busy_s = 0.0
        self._next_eval += self.eval_every
        try:
            self._drive()
        except BaseException:
            if self.journal.updates:  # a lost cluster loses no accepted update
                self._merge()
                self._save(collect=False)
            raise
        self._finish()
        return self._solution()

    def _drive(self) -> None:
        coordinator = self.coordinator
        while True:
            coordinator.fill()
            if coordinator.idle:
                break
            self._listen()
            self._merge()
            self._decide()
            step = self._mean_step()
            if step >= self._next_eval:
                self._next_eval = (step // self.eval_every + 1) * self.eval_every
                self._snapshot()
            self._collect(wait=False)
            if self.save_due:
                self._save()

    def _listen(self) -> None:
        answers = self.executor.poll(POLL_S)
        for done in answers:
            self.coordinator.accept(done)
        now = time.monotonic()
        if answers:
            self._heard = now
        limit = self.config.cluster.task_timeout_s
        if now - self._heard > limit:
            raise RuntimeError(
                f"`cluster` must answer within {limit:g} s; nothing came. Look at its "
                "dashboard, then resume the run."
            )
        if now - self._told >= TELL_S:
            self._told = now
            self.tell("training", self._mean_step())

    def _merge(self) -> None:
        """Move what the coordinator has accepted into the journal."""
        outcome = self.coordinator.outcome
        self.coordinator.outcome = Outcome(in_order=outcome.in_order)
        self.journal.add(outcome)
        self.journal.n_reruns += self.coordinator.n_reruns
        self.coordinator.n_reruns = 0
        self.journal.wall_time_s = self._wall()

    def _wall(self) -> float:
        spent = self.executor.now() - self._began - self._busy_s / self.n_workers
        return self._before + float(max(spent, 0.0))

    def _mean_step(self) -> int:
        steps = self.coordinator.steps
        return int(sum(steps.values()) // len(steps))

    def _decide(self) -> None:
        journal, coordinator = self.journal, self.coordinator
        if journal.stop_reason:
            return
        if coordinator.diverged:
            journal.stop_reason = "diverged: non-finite loss"
        elif self.over_seconds():
            journal.stop_reason = "budget: seconds"
        elif self.over_bytes():
            journal.stop_reason = "budget: bytes"
        elif self.stop.is_set():
            journal.stop_reason = "interrupted"
        coordinator.stopping = bool(journal.stop_reason)

    def _finish(self) -> None:
        self._merge()
        if not self.journal.stop_reason:
            name = binding(self.config.budget, costs_in(self.context), self.limit)
            self.journal.stop_reason = f"budget: {name}"
        self._collect(wait=True)
        if self._snapped != self.coordinator.steps:
            self._snapshot()
            self._collect(wait=True)
        if self.coordinator.diverged:
            self.journal.stop_reason = "diverged: non-finite loss"
        if self.journal.stop_reason == "interrupted":
            self._save()
        self.tell("training", self._mean_step())

    # -- evaluations -----------------------------------------------------------------

    def _solution(self) -> tuple[Tensor, Tensor | None]:
        messages = {
            n: message_of(self.context, p) for n, p in self.coordinator.points.items()
        }
        return self.context.solution(messages)

    def _snapshot(self) -> None:
        self._snapped = dict(self.coordinator.steps)
        params, buffers = self._solution()
        facts = {
            "step": self._mean_step(),
            "params": host(params),
            "buffers": None if buffers is None else host(buffers),
            "wall_time_s": self.journal.wall_time_s,
            "version": self.journal.version,
            "counters": replace(self.journal.counters),
        }
        self._evaluations.append((self._evaluate(params, buffers), facts))

    def _collect(self, *, wait: bool) -> None:
        while self._evaluations and (wait or self._evaluations[0][0].ready()):
            evaluation, facts = self._evaluations.pop(0)
            sums, busy_s = evaluation.result()
            self._busy_s += busy_s
            self.journal.eval_time_s += busy_s / self.n_workers
            row = self.journal.add_eval(sums=sums, **facts)
            if not math.isfinite(row["train_loss"]):
                self.coordinator.diverged = True

    # -- checkpoints -----------------------------------------------------------------

    def _save(self, *, collect: bool = True) -> None:
        coordinator = self.coordinator
        if collect:
            self._collect(wait=True)
        state = {
            "points": {n: list(p) for n, p in coordinator.points.items()},
            "groups": [
                [g.nodes, g.accepted, g.seen, g.base] for g in coordinator.groups
            ],
        }
        self.save("free", self._mean_step(), state)
        for group in coordinator.groups:
            group.want_states = True


def restore(coordinator: Coordinator, state: dict[str, Any], published: int) -> None:
    """Put a coordinator where a checkpoint was; workers rebuild their states."""
    coordinator.points = {n: tuple(p) for n, p in state["points"].items()}
    coordinator.groups = [
        Group(tuple(nodes), accepted, seen, base=base, rebuild=accepted > 0)
        for nodes, accepted, seen, base in state["groups"]
    ]
    for group in coordinator.groups:
        for node in group.nodes:
            coordinator.steps[node] = group.accepted
    coordinator.published = published


def saved_groups(state: dict[str, Any]) -> list[tuple[int, ...]]:
    """Groups of a checkpoint; an executor that continues it must use the same."""
    return [tuple(nodes) for nodes, *_ in state["groups"]]


class ReplicaTraining(FreeTraining):
    """Asynchronous replicas: the same loop over another coordinator."""

    def begin(self, executor: JobExecutor, state: dict[str, Any] | None) -> None:
        """Set up the coordinator, at the start or from a checkpoint's ``state``."""
        self.executor, self.n_workers = executor, executor.n_workers
        limit = self.limit or None
        steps, together = limit, None
        if self.context.served and limit:  # whoever is fast does more of them
            steps, together = None, limit * self.context.n_nodes
        self.coordinator = ReplicaCoordinator(self.context, executor, steps, together)
        if state is not None:
            self.coordinator.restore(state)

    def _solution(self) -> tuple[Tensor, Tensor | None]:
        solution: tuple[Tensor, Tensor | None] = self.coordinator.solution()
        return solution

    def _save(self, *, collect: bool = True) -> None:
        if collect:
            self._collect(wait=True)
        self.save("replicas", self._mean_step(), self.coordinator.to_plain())


class SplitsEvaluation:
    """An evaluation that is done where it is asked for."""

    def __init__(
        self, context: Context, params: Tensor, buffers: Tensor | None
    ) -> None:
        shards = range(context.config.n_shards)
        self._sums = {s: context.evaluate(params, buffers, s, shards) for s in SPLITS}

    def ready(self) -> bool:
        """Always."""
        return True

    def result(self) -> tuple[Sums, float]:
        """Sums; a virtual clock does not run while evaluating."""
        return self._sums, 0.0
