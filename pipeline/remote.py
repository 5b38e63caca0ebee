"""Work on a run's workers beside its rounds: loading data, evaluating the network."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from distributed import Future, wait
from torch import Tensor

from pipeline.batches import Split
from pipeline.cluster import Cluster
from pipeline.context import RunSpec, context_of
from pipeline.pack import host, tensor
from pipeline.pending import FETCH_S, AnswerLost, fetch

WATCH_S = 1.0  # between two looks at whether the workers of some tasks are alive


def prepare(cluster: Cluster, spec: RunSpec) -> None:
    """Build the run's context, with its data resident, on every worker of the run."""

    def load(address: str) -> Future[Any]:
        future: Future[Any] = cluster.client.submit(
            warm,
            spec,
            workers=[address],
            allow_other_workers=True,
            pure=False,
            key=f"prepare-{uuid.uuid4().hex[:8]}-{spec.run_id}",
        )
        return future

    addresses = cluster.wait_for_workers()
    Placed(cluster, [(load, address) for address in addresses]).answers(
        "load model and data"
    )


Submit = Callable[[str], "Future[Any]"]  # on the worker of an address, or another


class Placed:
    """Tasks of one kind on a run's workers, which may die and come back meanwhile.

    Parameters
    ----------
    tasks : how each is submitted, and the address of the worker it goes to first.
    """

    def __init__(self, cluster: Cluster, tasks: Sequence[tuple[Submit, str]]) -> None:
        self._cluster = cluster
        self._tasks = list(tasks)
        self._futures = [submit(address) for submit, address in self._tasks]

    def ready(self) -> bool:
        """Whether ``answers`` would not wait."""
        return all(f.done() for f in self._futures)

    def answers(self, what: str) -> list[Any]:
        """Answers in order, each task within ``task_timeout_s`` on workers that live.

        Raises
        ------
        RuntimeError — if there is none in time, or no worker comes back.
        """
        limit = self._cluster.config.task_timeout_s
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            try:
                wait(self._futures, timeout=min(WATCH_S, limit))
                return fetch(self._cluster.client, self._futures, min(FETCH_S, limit))
            except TimeoutError:
                moved = self._move()
            except AnswerLost:  # a worker died after its answer
                moved = self._move(done_too=True)
            if moved:
                deadline = time.monotonic() + limit
        raise self._slow(what)

    def _move(self, *, done_too: bool = False) -> bool:
        """Submit again what waits for a worker that is gone; whether there was any.

        If no worker was left, Dask gives it to none of those that come later.
        """
        alive = self._cluster.wait_for_workers()
        moved = False
        for i, (submit, address) in enumerate(self._tasks):
            if address not in alive and (done_too or not self._futures[i].done()):
                moved = True
                self._futures[i].cancel()
                self._tasks[i] = (submit, alive[i % len(alive)])
                self._futures[i] = submit(self._tasks[i][1])
        return moved

    def _slow(self, what: str) -> RuntimeError:
        limit = self._cluster.config.task_timeout_s
        return RuntimeError(
            f"`cluster` must {what} within {limit:g} s; got no answer. Look at its "
            "dashboard, or raise cluster.task_timeout_s."
        )


def warm(spec: RunSpec) -> int:
    """Load model, blocks and data in this process; returns the number of nodes."""
    context = context_of(spec)
    if spec.config.algorithm.scored:
        shards = range(spec.config.n_shards)
        for _ in context.data.batches("loss", shards, 0):
            pass
    return context.n_nodes


class RemoteEvaluation:
    """An evaluation spread over the cluster's workers, shards in order."""

    def __init__(
        self,
        cluster: Cluster,
        spec: RunSpec,
        params: Tensor,
        buffers: Tensor | None,
        splits: Sequence[Split],
    ) -> None:
        self._cluster, self._spec, self._splits = cluster, spec, splits
        self._arrays = (host(params), None if buffers is None else host(buffers))
        addresses = cluster.wait_for_workers()
        shards = np.arange(spec.config.n_shards)
        parts = [p.tolist() for p in np.array_split(shards, len(addresses)) if len(p)]
        tasks = [partial(self._submit, part) for part in parts]
        self._placed = Placed(cluster, list(zip(tasks, addresses, strict=False)))

    def _submit(self, part: list[int], address: str) -> Future[Any]:
        resource = self._cluster.config.resource
        future: Future[Any] = self._cluster.client.submit(
            evaluate_share,
            self._spec,
            *self._arrays,
            self._splits,
            part,
            key=f"evaluate-{uuid.uuid4().hex[:8]}-{self._spec.run_id}",
            workers=[address],
            allow_other_workers=True,
            resources={resource: 1} if resource else None,
            pure=False,
        )
        return future

    def ready(self) -> bool:
        """Whether ``result`` would not wait."""
        return self._placed.ready()

    def result(self) -> tuple[dict[Split, np.ndarray], float]:
        """(n_shards, 3) sums by split, and the worker-seconds that they took."""
        answers = self._placed.answers("evaluate the network")
        sums = {
            s: np.concatenate([part[s] for part, _ in answers]) for s in self._splits
        }
        return sums, sum(busy for _, busy in answers)


def evaluate_share(
    spec: RunSpec,
    params: np.ndarray,
    buffers: np.ndarray | None,
    splits: Sequence[Split],
    shards: list[int],
) -> tuple[dict[Split, np.ndarray], float]:
    """One worker's shards of an evaluation, and the seconds that it took."""
    began = time.perf_counter()
    context = context_of(spec)
    theta = tensor(params, context.device)
    own = None if buffers is None else tensor(buffers, context.device)
    sums = {split: context.evaluate(theta, own, split, shards) for split in splits}
    return sums, time.perf_counter() - began
