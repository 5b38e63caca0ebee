"""Where a run computes: in this process, or on a Dask cluster; same mathematics."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from distributed import Future, wait
from torch import Tensor

from blocks.algorithm import Message
from blocks.oracle import Counters
from pipeline.batches import Split
from pipeline.cluster import Cluster
from pipeline.context import Context, RunSpec, context_of
from pipeline.loss_board import LocalBoard, VariableBoard
from pipeline.mailbox import end_piece
from pipeline.pack import pack, unpack
from pipeline.pending import AnswerLost, fetch, scheduler_lost
from pipeline.placement import place, short_list
from pipeline.remote import RemoteEvaluation, prepare
from pipeline.rounds import (
    NodeState,
    Outcome,
    Packed,
    Piece,
    run_in_process,
    run_on_worker,
)

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 30  # times a piece is started before the run gives up
WATCH_S = 0.25  # between two looks at whether a piece's workers are alive
SETTLE_S = 30.0  # for the survivors of an aborted piece to return


class Engine(Protocol):
    """Runs synchronous pieces and evaluations of one run."""

    n_workers: int
    n_reruns: int
    init_cost: Counters  # of the nodes' first states

    def run(self, first: int, n_rounds: int, steps: tuple[int, ...] = ()) -> Outcome:
        """Run rounds ``first`` … ``first + n_rounds − 1``.

        ``steps`` : that the nodes have taken; () = ``first`` by all.
        """

    def messages(self) -> dict[int, Message]:
        """Newest message of every node."""

    def snapshot(self) -> Packed:
        """States and messages of all nodes as arrays and JSON trees."""

    def restore(self, packed: Packed) -> None:
        """Continue from a snapshot."""

    def evaluate(
        self, params: Tensor, buffers: Tensor | None, splits: Sequence[Split]
    ) -> dict[Split, np.ndarray]:
        """(n_shards, 3) sums of each split (``Context.evaluate``)."""


class InProcess:
    """Everything in this process: the plain loop that the cluster must agree with."""

    n_workers = 1
    n_reruns = 0

    def __init__(self, spec: RunSpec) -> None:
        self.context: Context = context_of(spec)
        self._board = LocalBoard()
        self._states: dict[int, NodeState]
        self._states, self.init_cost = self.context.start()

    def run(self, first: int, n_rounds: int, steps: tuple[int, ...] = ()) -> Outcome:
        """Run rounds ``first`` … ``first + n_rounds − 1``."""
        config = self.context.config
        shares = place(self.context.n_nodes, config.n_shards, 1)
        spec = self.context.spec
        piece = Piece(spec, "", "", first, n_rounds, shares, 1.0, steps=steps)
        self._states, outcome = run_in_process(
            self.context, piece, self._states, self._board
        )
        return outcome

    def messages(self) -> dict[int, Message]:
        """Newest message of every node."""
        return {node: message for node, (_, message) in self._states.items()}

    def snapshot(self) -> Packed:
        """States and messages of all nodes."""
        return {node: pack(one) for node, one in self._states.items()}

    def restore(self, packed: Packed) -> None:
        """Continue from a snapshot."""
        device = self.context.device
        self._states = {n: unpack(*one, device=device) for n, one in packed.items()}

    def evaluate(
        self, params: Tensor, buffers: Tensor | None, splits: Sequence[Split]
    ) -> dict[Split, np.ndarray]:
        """Sums of each split, by shard."""
        shards = range(self.context.config.n_shards)
        return {s: self.context.evaluate(params, buffers, s, shards) for s in splits}


class OnDask:
    """Pieces as Dask futures, one a worker; a worker's death starts the piece again."""

    def __init__(self, spec: RunSpec, cluster: Cluster) -> None:
        self.spec = spec
        self.cluster = cluster
        self.client = cluster.client
        self.n_reruns = 0
        self.context = context_of(spec)  # for the layout and the nodes' first states
        states, self.init_cost = self.context.start()
        self._packed: Packed = {node: pack(one) for node, one in states.items()}
        prepare(cluster, spec)
        self.n_workers = len(cluster.wait_for_workers())
        self.board_name = f"ndcao-{spec.run_id}-{uuid.uuid4().hex[:8]}"
        VariableBoard(self.board_name, spec.run_id, self.client).open()

    def close(self) -> None:
        """Delete the run's Variable."""
        self.cluster.forget(self.board_name)

    def run(self, first: int, n_rounds: int, steps: tuple[int, ...] = ()) -> Outcome:
        """Run a piece; again from its start if a worker of it dies."""
        for attempt in range(MAX_ATTEMPTS):
            alone = len(set(self.spec.config.own_worker))
            needed = min(alone + 1, max(self.context.n_nodes, 1))
            addresses = self.cluster.wait_for_workers(needed)
            piece = self._piece(first, n_rounds, attempt, addresses)
            piece = replace(piece, steps=steps)
            outcome = self._attempt(piece)
            if not outcome.aborted:
                self.n_workers = len(addresses)
                self.cluster.look_at(piece.addresses)
                return outcome
            self.n_reruns += len(piece.shares)
            logger.warning(
                "rounds %d to %d start again: %s",
                first,
                first + n_rounds - 1,
                outcome.aborted,
            )
        raise RuntimeError(
            f"`cluster` must keep its workers for one piece of {n_rounds} rounds; gave "
            f"up after {MAX_ATTEMPTS} attempts. Resume the run on a steadier cluster."
        )

    def _piece(
        self, first: int, n_rounds: int, attempt: int, addresses: list[str]
    ) -> Piece:
        config = self.spec.config
        shared = config.algorithm.scored and not config.pipelined
        n_shards = config.n_shards if shared else 0
        shares = place(
            self.context.n_nodes, n_shards, len(addresses), config.own_worker
        )
        return Piece(
            spec=self.spec,
            name=f"{self.board_name}-r{first}-a{attempt}",
            board=self.board_name,
            first=first,
            n_rounds=n_rounds,
            shares=shares,
            timeout_s=config.cluster.task_timeout_s,
            addresses=tuple(addresses[: len(shares)]),
        )

    def _attempt(self, piece: Piece) -> Outcome:
        futures = [self._submit(piece, rank) for rank in range(len(piece.shares))]
        try:
            problem = self._watch(piece, futures)
            if problem:
                self._abort(piece, futures)
                return Outcome(aborted=problem)
            answers = fetch(self.client, futures)
        except AnswerLost:
            self._abort(piece, futures)
            return Outcome(aborted="a worker took its answer along")
        except BaseException:  # an error in one task: its peers must not wait for it
            self._abort(piece, futures)
            raise
        finally:
            if self.client.status == "running":
                self.client.cancel(futures)
        merged = Outcome()
        names = self.cluster.workers()
        for _, outcome in answers:
            outcome.updates = [
                (node, step, seen, start, end, names.get(worker, worker))
                for node, step, seen, start, end, worker in outcome.updates
            ]
            merged.add(outcome)
        if not merged.aborted:
            for packed, _ in answers:
                self._packed.update(packed)
        return merged

    def _submit(self, piece: Piece, rank: int) -> Future[Any]:
        share = piece.shares[rank]
        rounds = f"r{piece.first}-r{piece.first + piece.n_rounds - 1}"
        what = f"update-{short_list(share.nodes)}" if share.nodes else "score"
        resource = self.cluster.config.resource
        return self.client.submit(
            run_on_worker,
            piece,
            rank,
            {node: self._packed[node] for node in share.nodes},
            key=f"{what}-{rounds}-{piece.name.removeprefix('ndcao-')}-w{rank}",
            workers=[piece.addresses[rank]],
            resources={resource: 1} if resource else None,
            pure=False,
        )

    def _watch(self, piece: Piece, futures: list[Future[Any]]) -> str:
        """Wait for a piece; returns what went wrong, or nothing."""
        limit = 2 * piece.timeout_s  # beyond what its workers wait for each other
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            try:
                wait(futures, timeout=WATCH_S)
                return _failure(futures)
            except TimeoutError:
                problem = _failure(futures)
                gone = set(piece.addresses) - set(self.cluster.workers())
                if problem or gone:
                    return problem or f"worker {', '.join(sorted(gone))} is gone"
        raise RuntimeError(
            f"`cluster` must finish {piece.n_rounds} round(s) within {limit:g} s; got "
            "no answer. Look at its dashboard, or raise cluster.task_timeout_s."
        )

    def _abort(self, piece: Piece, futures: list[Future[Any]]) -> None:
        """Tell the survivors to stop waiting for each other, and let them return."""
        alive = [a for a in piece.addresses if a in self.cluster.workers()]
        if alive:
            self.client.run(end_piece, piece.name, workers=alive, on_error="ignore")
        lost = set(piece.addresses) - set(alive)
        rest = [
            f for f, a in zip(futures, piece.addresses, strict=True) if a not in lost
        ]
        deadline = time.monotonic() + SETTLE_S
        while rest and any(f.status == "pending" for f in rest):
            if time.monotonic() > deadline:
                logger.warning(
                    "workers of %s did not stop in %g s", piece.name, SETTLE_S
                )
                return
            try:
                wait(rest, timeout=WATCH_S)
            except TimeoutError:
                current = self.cluster.workers()
                rest = [
                    f
                    for f, a in zip(futures, piece.addresses, strict=True)
                    if a in current
                ]

    def messages(self) -> dict[int, Message]:
        """Newest message of every node."""
        device = self.context.device
        return {n: unpack(*one, device=device)[1] for n, one in self._packed.items()}

    def snapshot(self) -> Packed:
        """States and messages of all nodes."""
        return dict(self._packed)

    def restore(self, packed: Packed) -> None:
        """Continue from a snapshot."""
        self._packed = dict(packed)

    def evaluate(
        self, params: Tensor, buffers: Tensor | None, splits: Sequence[Split]
    ) -> dict[Split, np.ndarray]:
        """Sums of each split by shard, computed on the workers."""
        sums, _ = RemoteEvaluation(
            self.cluster, self.spec, params, buffers, splits
        ).result()
        return sums


def _failure(futures: list[Future[Any]]) -> str:
    """Why a piece cannot finish; errors of the run itself are raised."""
    from distributed import KilledWorker

    for future in futures:
        if future.status == "error":
            error = future.exception()
            if not isinstance(error, KilledWorker):
                raise error
            return str(error)
        if scheduler_lost(future):
            raise RuntimeError(
                "`cluster` must keep its scheduler; it forgot "
                f"{future.key}. Start one, then resume the run."
            )
        if future.status in ("lost", "cancelled"):
            return f"the scheduler {future.status} {future.key}"
    return ""
