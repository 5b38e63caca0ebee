"""Work on a run's workers beside its rounds: loading data, evaluating the network."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from distributed import Future, wait
from torch import Tensor

from pipeline.batches import Split
from pipeline.cluster import Cluster
from pipeline.context import RunSpec, context_of
from pipeline.pack import host, tensor
from pipeline.pending import AnswerLost, fetch

WATCH_S = 1.0  # between two looks at whether an evaluation's workers are alive


def prepare(cluster: Cluster, spec: RunSpec) -> None:
    """Build the run's context, with its data resident, on every worker of the run."""
    futures = [
        cluster.client.submit(
            warm,
            spec,
            workers=[address],
            allow_other_workers=True,
            pure=False,
            key=f"prepare-{uuid.uuid4().hex[:8]}-{spec.run_id}",
        )
        for address in cluster.wait_for_workers()
    ]
    gathered(cluster, futures, "load model and data")


def gathered(cluster: Cluster, futures: list[Future[Any]], what: str) -> Any:
    """Results of some futures, within the cluster's ``task_timeout_s``."""
    limit = cluster.config.task_timeout_s
    slow = RuntimeError(
        f"`cluster` must {what} within {limit:g} s; got no answer. Look at its "
        "dashboard, or raise cluster.task_timeout_s."
    )
    try:
        wait(futures, timeout=limit)
    except TimeoutError as err:
        raise slow from err
    try:
        return fetch(cluster.client, futures, limit)
    except AnswerLost as err:
        raise slow from err


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
        self._parts = list(zip(parts, addresses, strict=False))
        self._futures = [self._submit(*one) for one in self._parts]

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

    def _move(self) -> None:
        """Submit again what waits for a worker that is gone.

        If no worker was left, Dask gives it to none of those that come later.
        """
        alive = self._cluster.wait_for_workers()
        for i, (part, address) in enumerate(self._parts):
            if address not in alive and not self._futures[i].done():
                self._futures[i].cancel()
                self._parts[i] = (part, alive[i % len(alive)])
                self._futures[i] = self._submit(*self._parts[i])

    def ready(self) -> bool:
        """Whether ``result`` would not wait."""
        return all(f.done() for f in self._futures)

    def result(self) -> tuple[dict[Split, np.ndarray], float]:
        """(n_shards, 3) sums by split, and the worker-seconds that they took."""
        deadline = time.monotonic() + self._cluster.config.task_timeout_s
        while not self.ready() and time.monotonic() < deadline:
            try:
                wait(self._futures, timeout=WATCH_S)
            except TimeoutError:
                self._move()
        answers = gathered(self._cluster, self._futures, "evaluate the network")
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
