"""What single operations of a run take, measured on a local cluster."""

from __future__ import annotations

import itertools
import pickle
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from _moving import LIMIT_S, chain, posts, round_trip, throughput, variable
from distributed import wait

from blocks.algorithm import LossRecord
from pipeline.cluster import Cluster, open_cluster
from pipeline.cluster_config import ClusterConfig
from pipeline.context import RunSpec, context_of
from pipeline.engines import OnDask
from pipeline.virtual import Costs

TIMES = 9  # that a computation is timed
SHARDS = 64  # at most that are timed at once
ROUNDS = 60  # of updates; the last are timed


@dataclass(frozen=True, slots=True)
class Computing:
    """Seconds of a run's own work on one worker."""

    update_s: float  # mean of the blocks
    start_s: float  # of a share, whatever its shards
    score_s: float  # of all shards


@dataclass(frozen=True, slots=True)
class Moving:
    """Seconds that answers take on their way."""

    post_s: float  # from worker to worker inside a piece of rounds
    further_s: float  # for each further post of many at once
    set_s: float  # the Variable
    get_s: float
    round_trip_s: float  # client → worker → client, for one task
    task_s: float  # for each of many tasks at once
    hop_s: float  # a task's end → start of one that waits for it, same worker
    move_s: float  # and on another worker
    between_s: float  # from the end of a piece of rounds to the start of the next


def sync_costs(own: Computing, moving: Moving, n_workers: int) -> Costs:
    """Costs of synchronous rounds: pieces on the workers, posts between them.

    Half of the post that carries the points stands before the scores are given out and
    half after; a share costs two posts, its losses and the record. Alone, a worker
    posts nothing.
    """
    alone = n_workers == 1
    post_s = 0.0 if alone else moving.post_s
    further_s = 0.0 if alone else moving.further_s
    return Costs(
        update_s=own.update_s,
        score_s=own.score_s,
        start_s=own.start_s,
        latency_s=post_s / 2,
        task_s=further_s,
        move_s=post_s,
        share_s=2 * further_s,
        publish_s=moving.set_s,
        read_s=moving.get_s,
    )


def async_costs(own: Computing, moving: Moving) -> Costs:
    """Costs of asynchronous runs: every step and every share is a Dask task."""
    return Costs(
        update_s=own.update_s,
        score_s=own.score_s,
        start_s=own.start_s,
        latency_s=max(moving.round_trip_s - moving.task_s, 0.0) / 2,
        task_s=moving.task_s,
        hop_s=moving.hop_s,
        move_s=max(moving.move_s - moving.hop_s, 0.0),
        share_s=moving.further_s,
        publish_s=moving.get_s + moving.set_s,
        read_s=moving.get_s,
    )


def own_costs(specs: dict[str, RunSpec], n_workers: int) -> dict[str, Computing]:
    """Measure runs' own work on workers that all do it at once, as in a run.

    They share a host's memory and caches, so that two take longer than one alone, and a
    version waits for the last of them: the slowest counts, each time anew.
    """
    found = {}
    with open_cluster(local(n_workers)) as cluster:
        for name, spec in specs.items():
            futures = [
                cluster.client.submit(computing, spec, workers=[at], pure=False)
                for at in cluster.workers()
            ]
            wait(futures, timeout=LIMIT_S)
            spent = np.array(cluster.client.gather(futures)).max(0).mean(1)
            found[name] = computing_of(*spent, spec.config.n_shards)
    return found


def moving_costs(spec: RunSpec, tiny: RunSpec) -> Moving:
    """Measure a cluster of two workers with a run's messages.

    ``tiny`` is a run of short rounds, for the time between two pieces.
    """
    with open_cluster(local(2)) as cluster:
        client = cluster.client
        one, two = list(cluster.workers())
        name = f"posts-{uuid.uuid4().hex[:8]}"
        pair = [
            client.submit(posts, name, (one, two), rank, spec, workers=[at], pure=False)
            for rank, at in enumerate((one, two))
        ]
        wait(pair, timeout=LIMIT_S)
        post_s, further_s = client.gather(pair)[0]
        board = client.submit(variable, name, spec, workers=[one], pure=False)
        set_s, get_s = board.result(timeout=LIMIT_S)
        payload = pickle.dumps(np.zeros(context_of(spec).model.n_params, np.float32))
        task_s = throughput(client, (one, two), payload)
        trip_s = round_trip(client, one)
        hop_s, move_s = chain(client, (one, one)), chain(client, (one, two))
        tasks = (trip_s, task_s, hop_s, move_s, between(cluster, tiny))
    return Moving(post_s, further_s, set_s, get_s, *tasks)


def local(n_workers: int) -> ClusterConfig:
    """A cluster on this machine."""
    return ClusterConfig(kind="local", workers=n_workers, dashboard=False)


def mean(several: Sequence[Computing]) -> Computing:
    """Field by field."""
    columns = zip(*map(astuple, several), strict=True)
    return Computing(*(statistics.mean(column) for column in columns))


def between(cluster: Cluster, spec: RunSpec) -> float:
    """Seconds that a piece takes beside its rounds."""
    engine = OnDask(spec, cluster)
    spent: dict[int, list[float]] = {1: [], ROUNDS: []}
    first = 0
    for _ in range(TIMES):
        for n_rounds, found in spent.items():
            start = time.perf_counter()
            engine.run(first, n_rounds)
            found.append(time.perf_counter() - start)
            first += n_rounds
    engine.close()
    short_s, long_s = (statistics.median(found[1:]) for found in spent.values())
    return max(short_s - (long_s - short_s) / (ROUNDS - 1), 0.0)


def computing(spec: RunSpec) -> np.ndarray:
    """(3, TIMES) seconds of an update, of a share of one shard, and of several."""
    context = context_of(spec)
    states, _ = context.start()
    messages = {node: message for node, (_, message) in states.items()}
    steps = [0] * context.n_nodes
    several = range(several_of(spec.config.n_shards))
    version = itertools.count()  # a new one draws new samples, as in a run
    shares = seconds(
        lambda: context.score(messages, steps, [0], next(version)),
        lambda: context.score(messages, steps, several, next(version)),
    )
    updates = []
    for k in range(ROUNDS):
        rng = np.random.default_rng(k)
        losses = 2.3 + 0.01 * rng.normal(size=spec.config.algorithm.n_probes)
        told = tuple(losses.tolist())
        record = LossRecord(spec.run_id, k, told, (k,) * context.n_nodes, 0)
        start = time.perf_counter()
        for node, (state, _) in states.items():
            new, message, _ = context.update(node, k, state, record)
            states[node] = (new, message)
        updates.append((time.perf_counter() - start) / context.n_nodes)
    return np.array([updates[-TIMES:], *shares])


def several_of(n_shards: int) -> int:
    """How many shards of a score are timed at once."""
    return min(SHARDS, n_shards)


def computing_of(
    update_s: float, first_s: float, several_s: float, n_shards: int
) -> Computing:
    """What an update, a share of one shard and one of several say of all shares."""
    shard_s = (several_s - first_s) / (several_of(n_shards) - 1)
    return Computing(update_s, max(first_s - shard_s, 0.0), shard_s * n_shards)


def seconds(*works: Callable[[], object]) -> list[list[float]]:
    """Seconds of calls that take turns, after one of each that is not timed."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(TIMES + 1):
        for work, found in zip(works, spent, strict=True):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [found[1:] for found in spent]
