"""An executor of Dask futures: updates read the shared Variable, scores publish."""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Future, KilledWorker, get_client, get_worker

from blocks.algorithm import LossRecord
from pipeline.cluster import Cluster
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
from pipeline.loss_board import VariableBoard
from pipeline.placement import group_slots, place_nodes
from pipeline.updates import Resident, record_of, score_points, take_step

logger = logging.getLogger(__name__)

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
        self._shares: dict[int, tuple[ScoreTask, list[Future[Any]], set[str]]] = {}
        self._held: list[UpdateTask] = []
        self._finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._count = 0
        self._addresses: list[str] = []
        self._names: dict[str, str] = {}
        self._looked = 0.0

    def close(self) -> None:
        """Cancel what is queued, drop the workers' states, delete the Variable."""
        with self._lock:
            rest = [future for future, *_ in self._tasks.values()]
        self.client.cancel(rest)
        self.cluster.forget(self.board_name, forget)

    def now(self) -> float:
        """Wall seconds."""
        return time.time()

    def groups(self) -> list[tuple[int, ...]]:
        """Nodes by group."""
        return self._groups

    def _place(self, slot: int) -> dict[str, Any]:
        """Where a task prefers to run; another worker takes it if that one is gone."""
        self._look()
        if not self._addresses:
            self._addresses = self.cluster.wait_for_workers()
        resource = self.cluster.config.resource
        return {
            "workers": [self._addresses[slot % len(self._addresses)]],
            "allow_other_workers": True,
            "resources": {resource: 1} if resource else None,
            "pure": False,
        }

    def _look(self) -> None:
        """Ask, at most once a second, which workers there are."""
        if time.monotonic() - self._looked > 1.0 or not self._addresses:
            self._names = self.cluster.workers()
            self._addresses = list(self._names)[: self.n_workers]
            self._looked = time.monotonic()

    def _submit(
        self,
        what: Any,
        function: Any,
        *args: Any,
        key: str,
        needs: set[str] | None = None,
        **where: Any,
    ) -> Future[Any]:
        """Submit a task; ``needs``: further workers that must live for it to run."""
        self._count += 1
        unique = f"{key}-{self._nonce}-{self._count}"
        future = self.client.submit(
            function, *args, key=unique, fifo_timeout="0ms", **where
        )
        if what is not None:
            needed = {*where["workers"], *(needs or ())}
            with self._lock:
                self._tasks[unique] = (future, what, needed)
            future.add_done_callback(self._note)
        return future

    def _note(self, future: Future[Any]) -> None:
        self._finished.put(future)

    def submit_update(self, task: UpdateTask) -> None:
        """Queue an update behind the publication of what it must see.

        Its group's previous update is no dependency: a chain of steps would keep every
        ancestor on the scheduler. The group's worker takes them in order; one that
        finds other states than it needs answers "missed".
        """
        if task.at_least > self._newest and task.at_least not in self._published:
            self._held.append(task)  # that publication is not submitted yet
            return
        pending = task.at_least > self._newest
        blocks = "+".join(f"b{node}" for node in task.nodes[:4])
        self._submit(
            task,
            update_group,
            self.spec,
            self.board_name,
            task,
            self._published[task.at_least] if pending else None,
            key=f"update-{blocks}-s{task.step}",
            priority=UPDATE_PRIORITY,
            **self._place(self._slots[task.group]),
        )

    def submit_score(self, task: ScoreTask) -> None:
        """Queue a score's shares, one future a worker, and its publication in turn."""
        n_shards = self.spec.config.n_shards
        parts = np.array_split(np.arange(n_shards), self._n_scorers)
        scored = {n: (point, None, std) for n, (point, _, std) in task.points.items()}
        packed = pickle.dumps(scored, protocol=5)  # opaque: Dask need not walk it
        shares, needed = [], set()
        for i, part in enumerate(parts):
            if len(part):
                where = self._place(i)
                needed |= set(where["workers"])
                shares.append(
                    self._submit(
                        None,
                        score_share,
                        self.spec,
                        packed,
                        task.steps,
                        part.tolist(),
                        task.subset,
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
                **self._place(0),
            )
        }
        held, self._held = self._held, []
        for update in held:
            self.submit_update(update)

    def poll(self, timeout_s: float) -> list[Done]:
        """Answers since the last call."""
        try:
            finished = [self._finished.get(timeout=timeout_s)]
        except queue.Empty:
            return self._stranded()
        while True:
            try:
                finished.append(self._finished.get_nowait())
            except queue.Empty:
                break
        with self._lock:
            taken = [self._tasks.pop(str(f.key), (None, None, None)) for f in finished]
        known = [(f, what) for f, (_, what, _) in zip(finished, taken, strict=True)]
        answers: list[Done] = []
        ready = [
            (f, task)
            for f, task in known
            if task is not None and f.status == "finished"
        ]
        values = self.client.gather([f for f, _ in ready], errors="skip")
        if len(values) == len(ready):
            answers += [
                self._answer(t, v) for (_, t), v in zip(ready, values, strict=True)
            ]
        else:  # a worker died between its answer and our asking
            answers += [Lost(task) for _, task in ready]
        for future, task in known:
            if task is None or future.status == "finished":
                continue
            if future.status == "error":
                error = future.exception()
                if not isinstance(error, KilledWorker):
                    raise error
            answers.append(Lost(task))
        return answers + self._stranded()

    def _stranded(self) -> list[Done]:
        """Tasks whose worker is gone; Dask itself runs them elsewhere, but not always.

        If no worker was left, it binds a task to one that is gone for good, and those
        that come later never get it, ``allow_other_workers`` or not.
        """
        self._look()
        alive = set(self._names)
        with self._lock:
            gone = {k: one for k, one in self._tasks.items() if not one[2] <= alive}
            for key in gone:
                del self._tasks[key]
        self.client.cancel([future for future, *_ in gone.values()])
        return [Lost(task) for _, task, _ in gone.values()]

    def _answer(self, task: Any, value: Any) -> Done:
        if isinstance(task, ScoreTask):
            record, start, end = value
            self._newest = max(self._newest, task.version)
            self._publish_next()
            return ScoreDone(task, record, start, end)
        done: UpdateDone = value
        return replace(
            done, task=task, worker=self._names.get(done.worker, done.worker)
        )


_RESIDENT: dict[tuple[str, tuple[int, ...]], Resident] = {}
_STEPPING: dict[tuple[str, tuple[int, ...]], threading.Lock] = {}


def forget(board_name: str) -> None:
    """Drop a run's states from this worker."""
    for key in [k for k in _RESIDENT if k[0] == board_name]:
        del _RESIDENT[key]
        _STEPPING.pop(key, None)


def update_group(
    spec: RunSpec, board_name: str, task: UpdateTask, after: Any
) -> UpdateDone:
    """Take one step of a group on this worker; ``after`` only orders it."""
    context = context_of(spec)
    board = VariableBoard(board_name, spec.run_id, client=get_client())
    key = (board_name, task.nodes)
    with _STEPPING.setdefault(key, threading.Lock()):  # a worker may have more threads
        resident, done = take_step(
            context,
            _RESIDENT.get(key),
            task,
            board,
            timeout_s=spec.config.cluster.task_timeout_s,
        )
        if resident is not None:
            _RESIDENT[key] = resident
    return replace(done, task=replace(task, base=None), worker=get_worker().address)


def score_share(
    spec: RunSpec,
    packed: bytes,
    steps: tuple[int, ...],
    shards: list[int],
    subset: int,
) -> tuple[dict[int, np.ndarray], float]:
    """Loss sums (K,) of some shards, by shard, and when the work began."""
    start = time.time()
    points: Points = pickle.loads(packed)
    rows = score_points(context_of(spec), points, steps, shards, subset)
    return dict(zip(shards, rows, strict=True)), start


def publish_score(
    spec: RunSpec,
    board_name: str,
    task: ScoreTask,
    shares: list[tuple[dict[int, np.ndarray], float]],
) -> tuple[LossRecord, float, float]:
    """Add the shares in shard order and publish."""
    context = context_of(spec)
    board = VariableBoard(board_name, spec.run_id, client=get_client())
    sums: dict[int, np.ndarray] = {}
    for part, _ in shares:
        sums.update(part)
    in_order = np.stack([sums[shard] for shard in range(spec.config.n_shards)])
    record = record_of(context, task.version, task.steps, task.subset, in_order)
    board.publish(record)
    return record, min(start for _, start in shares), time.time()
