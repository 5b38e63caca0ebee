"""An executor of Dask futures: updates read the shared Variable, scores publish."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Future, get_worker

from blocks.activity_noise import noise_of
from blocks.algorithm import LossRecord
from pipeline.cluster import Cluster, Roster
from pipeline.context import RunSpec, context_of
from pipeline.executor import (
    Done,
    Lost,
    Points,
    ScoreDone,
    ScoreTask,
    UpdateDone,
    UpdateTask,
)
from pipeline.loss_board import VariableBoard, board_of_task, pinned
from pipeline.pack import host, tensor
from pipeline.pending import Pending
from pipeline.placement import group_slots, place_nodes, short_list
from pipeline.scoring import Credits, Scored
from pipeline.timeline import log_update
from pipeline.updates import Resident, published, score_points, take_step

logger = logging.getLogger(__name__)

# record, start, end, and by block the credit of activity perturbation
Publication = tuple[LossRecord, float, float, dict[int, np.ndarray]]

NOT_YET = object()  # what an update must see is not on its way

UPDATE_PRIORITY = 1  # updates are short and unblock the next score


class FuturesExecutor:
    """Runs a coordinator's tasks on a cluster.

    A group's states stay in its worker's cache; a task that does not find them answers
    "missed" and comes again with what they are rebuilt from. A score is one future a
    worker and a last one that publishes, in the order of the versions.
    """

    def __init__(
        self,
        spec: RunSpec,
        cluster: Cluster,
        n_nodes: int,
        groups: list[tuple[int, ...]] | None = None,
        last: LossRecord | None = None,
    ) -> None:
        config = spec.config
        self.spec = spec
        self.client = cluster.client
        self.cluster = cluster
        self.n_workers = config.cluster.workers
        placed = place_nodes(n_nodes, self.n_workers, config.own_worker)
        self._groups = groups or [group for group in placed if group]
        self._slots = group_slots(self._groups, placed)
        self._n_scorers = max(self.n_workers - len(set(config.own_worker)), 1)
        self._nonce = uuid.uuid4().hex[:8]
        self.board_name = f"ndcao-{spec.run_id}-{self._nonce}"
        board = VariableBoard(self.board_name, spec.run_id, self.client)
        board.open()
        if last is not None:
            board.publish(last)
        self._newest = -1 if last is None else last.version  # known to be published
        self._published: dict[int, Future[Any]] = {}  # the publication under way
        self._credited: Publication | None = None  # the newest that is done
        self._activity = noise_of(config.algorithm) is not None
        self._shares: dict[int, tuple[ScoreTask, list[Future[Any]], set[str]]] = {}
        self._held: list[UpdateTask] = []
        self._pending: Pending[UpdateTask | ScoreTask] = Pending(cluster.client)
        self._roster = Roster(cluster)
        self._count = 0

    def close(self) -> None:
        """Cancel what is queued, drop the workers' states, delete the Variable."""
        self._pending.cancel()
        self.cluster.forget(self.board_name, forget)

    def now(self) -> float:
        """Wall seconds."""
        return time.time()

    def groups(self) -> list[tuple[int, ...]]:
        """Nodes by group."""
        return self._groups

    def _submit(
        self,
        what: UpdateTask | ScoreTask | None,
        function: Any,
        *args: Any,
        key: str,
        needs: set[str] | None = None,
        **where: Any,
    ) -> Future[Any]:
        """Submit a task; ``needs``: further workers that must live for it to run."""
        self._count += 1
        unique = f"{key}-{self.spec.run_id}-{self._nonce}-{self._count}"
        future: Future[Any] = self.client.submit(function, *args, key=unique, **where)
        if what is not None:
            self._pending.add(future, what, {*where["workers"], *(needs or ())})
        return future

    def submit_update(self, task: UpdateTask) -> None:
        """Queue an update behind the publication of what it must see.

        Its group's previous update is no dependency: a chain of steps would keep every
        ancestor on the scheduler. The group's worker takes them in order; one that
        finds other states than it needs answers "missed".
        """
        after = self._after(task)
        if after is NOT_YET:
            self._held.append(task)
            return
        self._submit(
            task,
            update_group,
            self.spec,
            self.board_name,
            task,
            after,
            key=f"update-{short_list(task.nodes)}-s{task.step}",
            priority=UPDATE_PRIORITY,
            **self._roster.place(self._slots[task.group]),
        )

    def _after(self, task: UpdateTask) -> Any:
        """What an update comes after: a publication under way, or what one brought.

        The credit of a version that is published goes along as data: its worker may be
        gone. A resumed run has none until its next publication.
        """
        if task.at_least > self._newest:
            return self._published.get(task.at_least, NOT_YET)
        if not self._activity:
            return None
        if self._credited is None:
            return next(iter(self._published.values()), NOT_YET)
        record, start, end, credit = self._credited
        return record, start, end, {node: credit[node] for node in task.nodes}

    def submit_score(self, task: ScoreTask) -> None:
        """Queue a score's shares, one future a worker, and its publication in turn."""
        n_shards = self.spec.config.n_shards
        parts = np.array_split(np.arange(n_shards), self._n_scorers)
        scored = {n: (point, None, std) for n, (point, _, std) in task.points.items()}
        packed = pickle.dumps(scored, protocol=5)  # opaque: Dask need not walk it
        shares, needed = [], set()
        for i, part in enumerate(parts):
            if len(part):
                where = self._roster.place(i)
                needed |= set(where["workers"])
                shares.append(
                    self._submit(
                        None,
                        score_share,
                        self.spec,
                        packed,
                        replace(task, points={}),
                        part.tolist(),
                        key=f"score-v{task.version}-share{i}",
                        **where,
                    )
                )
        self._shares[task.version] = (task, shares, needed)
        self._publish_next()

    def _publish_next(self) -> None:
        """Submit the next publication once the one before it is known to be done.

        So no two publish at once, and no publication depends on its ancestors.
        """
        version = self._newest + 1
        if version not in self._shares:
            return
        task, shares, needed = self._shares.pop(version)
        self._published = {
            version: self._submit(
                task,
                publish_score,
                self.spec,
                self.board_name,
                replace(task, points={}),
                shares,
                key=f"publish-v{version}",
                needs=needed,
                priority=UPDATE_PRIORITY,
                **self._roster.place(0),
            )
        }
        held, self._held = self._held, []
        for update in held:
            self.submit_update(update)

    def poll(self, timeout_s: float) -> list[Done]:
        """Answers since the last call."""
        answers, gone = self._pending.take(timeout_s, self._roster.names())
        done = [self._answer(task, value) for task, value in answers]
        return [*done, *(Lost(task) for task in gone)]

    def _answer(self, task: Any, value: Any) -> Done:
        self.cluster.look_at(self._roster.names())
        if isinstance(task, ScoreTask):
            record, start, end, _ = value
            if self._activity and task.version > self._newest:
                self._credited = value
            self._newest = max(self._newest, task.version)
            self._publish_next()
            return ScoreDone(task, record, start, end)
        done: UpdateDone = value
        names = self._roster.names()
        return replace(done, task=task, worker=names.get(done.worker, done.worker))


_RESIDENT: dict[tuple[str, tuple[int, ...]], Resident] = {}
_STEPPING: dict[tuple[str, tuple[int, ...]], threading.Lock] = {}


def forget(board_name: str) -> None:
    """Drop a run's states from this worker."""
    for key in [k for k in _RESIDENT if k[0] == board_name]:
        del _RESIDENT[key]
        _STEPPING.pop(key, None)


def update_group(
    spec: RunSpec, board_name: str, task: UpdateTask, after: Publication | None
) -> UpdateDone:
    """Take one step of a group on this worker.

    ``after`` only orders it; with activity perturbation it brings the credit of its
    version, which is then the one that is folded.
    """
    context = context_of(spec)
    board = board_of_task(board_name, spec.run_id)
    limit = spec.config.cluster.task_timeout_s

    def read() -> tuple[LossRecord, Credits]:
        if context.activity is None:
            return board.newest(task.at_least, limit), {}
        assert after is not None, "submitted behind a publication"
        record, _, _, packed = after
        credits = {n: tensor(packed[n], context.device) for n in task.nodes}
        return pinned(board, record.version, record, limit), credits

    key = (board_name, task.nodes)
    with _STEPPING.setdefault(key, threading.Lock()):  # a worker may have more threads
        resident, done = take_step(context, _RESIDENT.get(key), task, read)
        if resident is not None:
            _RESIDENT[key] = resident
    for node, start, end in done.times:
        log_update(spec.run_id, node, task.step, start, end)
    return replace(done, task=replace(task, base=None), worker=get_worker().address)


def score_share(
    spec: RunSpec, packed: bytes, task: ScoreTask, shards: list[int]
) -> tuple[dict[int, Scored], float]:
    """Some shards of a score, by shard, and when the work began."""
    start = time.time()
    points: Points = pickle.loads(packed)
    parts = score_points(context_of(spec), replace(task, points=points), shards)
    return dict(zip(shards, parts, strict=True)), start


def publish_score(
    spec: RunSpec,
    board_name: str,
    task: ScoreTask,
    shares: list[tuple[dict[int, Scored], float]],
) -> Publication:
    """Add the shares in shard order and publish."""
    context = context_of(spec)
    board = board_of_task(board_name, spec.run_id)
    parts: dict[int, Scored] = {}
    for part, _ in shares:
        parts.update(part)
    in_order = [parts[shard] for shard in range(spec.config.n_shards)]
    record, credits = published(context, task, in_order)
    board.publish(record)
    packed = {node: host(credit) for node, credit in credits.items()}
    return record, min(start for _, start in shares), time.time(), packed
