"""Run a training where its configuration says: in this process, or on a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

from distributed.client import ClosedClientError
from torch import Tensor

from pipeline.asynchronous import (
    FreeTraining,
    ReplicaTraining,
    SplitsEvaluation,
    saved_groups,
)
from pipeline.cluster import open_cluster
from pipeline.config import ClusterConfig, RunConfig
from pipeline.context import Context, RunSpec
from pipeline.engines import Engine, InProcess, OnDask
from pipeline.futures import FuturesExecutor
from pipeline.harness import SPLITS, BarrierTraining, Training
from pipeline.jobs_dask import DaskJobs
from pipeline.jobs_virtual import VirtualJobs
from pipeline.placement import place_nodes
from pipeline.remote import RemoteEvaluation, prepare
from pipeline.stages import blocks_of_segments
from pipeline.user_code import NO_CODE, packages_of
from pipeline.virtual import VirtualExecutor


def check_blocks(config: RunConfig, context: Context) -> None:
    """Refuse delays and placements of blocks that do not exist."""
    for name, nodes in (("delays", config.delays), ("own_worker", config.own_worker)):
        wrong = [node for node in nodes if not 0 <= node < context.n_nodes]
        if wrong:
            raise ValueError(
                f"`{name}` must name blocks 0 to {context.n_nodes - 1} of this "
                f"partition; got {wrong[0]}. Correct the block's number."
            )
    if config.pipelined:
        blocks_of_segments(context)
    if config.own_worker:
        place_nodes(context.n_nodes, config.cluster.workers, config.own_worker)


@contextlib.contextmanager
def opened(where: ClusterConfig, spec: RunSpec) -> Iterator[Any]:
    """Open the cluster of a run; None for one that computes in this process."""
    if where.kind == "in-process":
        yield None
        return
    with open_cluster(where, spec.config.device) as cluster:
        try:
            cluster.bring(packages_of(spec.config, spec.code or NO_CODE))
            cluster.want(where.workers)
            yield cluster
        except (OSError, CancelledError, ClosedClientError) as err:
            if cluster.client.status == "running":
                raise
            raise RuntimeError(
                "`cluster` must keep its scheduler; lost the connection to it "
                f"({type(err).__name__}). Start one, then resume the run."
            ) from err


def run(
    training: Training, spec: RunSpec, cluster: Any, saved: dict[str, Any] | None
) -> tuple[Tensor, Tensor | None]:
    """Train, from the start or from a checkpoint; final parameters and buffers."""
    training.dashboard = cluster.dashboard if cluster else None
    training.cluster = cluster
    if isinstance(training, BarrierTraining):
        return _run_barrier(training, spec, cluster, saved)
    assert isinstance(training, FreeTraining)
    if isinstance(training, ReplicaTraining):
        return _run_replicas(training, spec, cluster, saved)
    state = saved["states"] if saved else None
    groups = saved_groups(state) if state else None
    records = training.journal.scores
    last = records[-1][0] if records else None
    if cluster is None:
        virtual = VirtualExecutor(training.context, groups=groups)
        if last is not None:
            virtual.start_at(last, training.journal.wall_time_s)
        training.prepare(virtual, state)
        return training.run(lambda p, b: SplitsEvaluation(training.context, p, b))
    prepare(cluster, spec)
    executor = FuturesExecutor(spec, cluster, training.context.n_nodes, groups, last)
    try:
        training.prepare(executor, state)
        return training.run(lambda p, b: RemoteEvaluation(cluster, spec, p, b, SPLITS))
    finally:
        executor.close()


def _run_replicas(
    training: ReplicaTraining, spec: RunSpec, cluster: Any, saved: dict[str, Any] | None
) -> tuple[Tensor, Tensor | None]:
    state = saved["states"] if saved else None
    if cluster is None:
        virtual = VirtualJobs(training.context)
        virtual.start_at(training.journal.wall_time_s)
        training.begin(virtual, state)
        return training.run(lambda p, b: SplitsEvaluation(training.context, p, b))
    prepare(cluster, spec)
    jobs = DaskJobs(spec, cluster, training.context.n_nodes)
    try:
        training.begin(jobs, state)
        return training.run(lambda p, b: RemoteEvaluation(cluster, spec, p, b, SPLITS))
    finally:
        jobs.close()


def _run_barrier(
    training: BarrierTraining, spec: RunSpec, cluster: Any, saved: dict[str, Any] | None
) -> tuple[Tensor, Tensor | None]:
    engine: Engine = InProcess(spec) if cluster is None else OnDask(spec, cluster)
    try:
        if saved:
            engine.restore(saved["states"])
            engine.n_reruns = training.journal.n_reruns
        return training.run(engine, saved["done"] if saved else 0)
    finally:
        if isinstance(engine, OnDask):
            engine.close()
