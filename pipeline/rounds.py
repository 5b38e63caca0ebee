"""Synchronous rounds of one worker's share: score → publish → every block updates.

A *piece* is a bounded number of rounds. One future a worker runs its blocks' updates
and its shards of every score of the piece, and reads the Variable for each round. A
piece is a transaction: its answers count only when every worker has finished it, so a
death costs the piece and changes nothing (the same inputs give the same bits).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blocks.algorithm import LossRecord, Message, n_bytes
from blocks.oracle import Counters
from pipeline.context import Context, RunSpec, context_of
from pipeline.loss_board import (
    LocalBoard,
    LossBoard,
    board_of_task,
    pinned,
    record_bytes,
)
from pipeline.mailbox import Link, PieceAborted, end_piece
from pipeline.pack import pack, tensor, unpack
from pipeline.scoring import Credits, Scored, fold_credits, fold_losses
from pipeline.talk import Heard, Talk
from pipeline.timeline import log_update

NodeState = tuple[Any, Message]
Packed = dict[int, tuple[Any, list[np.ndarray]]]  # by node
Update = tuple[int, int, int, float, float, str]  # node, step, seen, start, end, worker
Log = Callable[[str, int, int, float, float], None]  # run, node, step, start, end


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker does in a piece."""

    nodes: tuple[int, ...]
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A bounded number of rounds of one run, the same for all its workers."""

    spec: RunSpec
    name: str  # unique for (run, first round, attempt)
    board: str  # name of the Variable
    first: int  # first round; round k scores version k and takes step k
    n_rounds: int
    shares: tuple[Share, ...]  # by rank; rank 0 publishes
    timeout_s: float
    addresses: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()  # taken by each node; () = ``first`` by all


@dataclass(slots=True)
class Outcome:
    """What a worker, or the whole piece, has done."""

    updates: list[Update] = field(default_factory=list)
    scores: list[tuple[LossRecord, float, float]] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    inboxes: list[tuple[int, ...]] = field(default_factory=list)  # by update
    in_order: bool = False  # updates are listed in the order in which they count
    n_done: int = 0  # complete rounds
    aborted: str = ""
    busy_s: float = 0.0

    def add(self, other: Outcome) -> None:
        """Merge another worker's outcome of the same piece."""
        self.updates += other.updates
        self.scores += other.scores
        self.counters.add(other.counters)
        self.n_done = max(self.n_done, other.n_done)
        self.aborted = self.aborted or other.aborted
        self.busy_s += other.busy_s


class Worker:
    """One worker's side of a piece; with a single share it needs no peers at all."""

    def __init__(
        self,
        context: Context,
        piece: Piece,
        rank: int,
        board: LossBoard,
        link: Link | None,
    ) -> None:
        self.context = context
        self.piece = piece
        self.rank = rank
        self.share = piece.shares[rank]
        self.board = board
        self.link = link
        self.outcome = Outcome()
        self.scorers = [r for r, s in enumerate(piece.shares) if s.shards]
        self.name = piece.addresses[rank] if piece.addresses else "in-process"
        owners = {n: r for r, s in enumerate(piece.shares) for n in s.nodes}
        self.talk = None
        if context.talks:
            counters, latency_s = self.outcome.counters, context.config.latency_s
            self.talk = Talk(context, owners, rank, link, counters, latency_s)
        self.seconds: dict[int, float] = {}  # that each node's newest step took
        self.log: Log | None = None  # told of every update while the piece runs

    def run(self, states: dict[int, NodeState]) -> dict[int, NodeState]:
        """Run the piece's rounds; returns the nodes' new states and messages."""
        for k in range(self.piece.first, self.piece.first + self.piece.n_rounds):
            record: LossRecord | None = None
            credits: Credits = {}
            if self.context.algorithm.scored:
                record, credits = self._score(k, states)
            if record is not None and not all(map(math.isfinite, record.losses)):
                break
            heard = self.talk.round(k, states) if self.talk else {}
            states = self._update(k, states, record, heard, credits)
            self.outcome.n_done += 1
        return states

    def _update(
        self,
        k: int,
        states: dict[int, NodeState],
        record: LossRecord | None,
        heard: Heard,
        credits: Credits,
    ) -> dict[int, NodeState]:
        new = {}
        for node, (state, _) in states.items():
            inbox, scalars = heard.get(node, (None, ()))
            before = self.seconds.get(node, 0.0)
            new[node] = self._step(
                *(node, k, record, state, inbox, scalars, before, credits.get(node))
            )
        return new

    def _step(
        self, node: int, k: int, record: LossRecord | None, state: Any, *given: Any
    ) -> NodeState:
        """Take a node's step k, timed, counted and told."""
        start = time.time()
        self._delay(node)
        state, message, used = self.context.update(node, k, state, record, *given)
        end = time.time()
        self.seconds[node] = end - start
        seen = record.version if record else -1
        self.outcome.updates.append((node, k, seen, start, end, self.name))
        if self.log is not None:
            self.log(self.piece.spec.run_id, node, k, start, end)
        self.outcome.busy_s += end - start
        self.outcome.counters.add(used)
        if self.context.algorithm.blockwise:
            self.outcome.counters.bytes_moved += message.n_bytes
        return state, message

    def _delay(self, node: int) -> None:
        delay = self.context.config.delays.get(node, 0.0)
        if delay:
            time.sleep(delay)  # a straggler on request, not a way to wait

    def _score(
        self, k: int, states: dict[int, NodeState]
    ) -> tuple[LossRecord, Credits]:
        start = time.time()
        own = {node: message for node, (_, message) in states.items()}
        scored: dict[int, Scored] = {}
        messages = self._exchange_points(k, own)
        if self.share.shards:
            busy = time.time()
            steps = [k] * self.context.n_nodes
            parts = self.context.score(messages, steps, self.share.shards, k)
            scored = dict(zip(self.share.shards, parts, strict=True))
            self.outcome.busy_s += time.time() - busy
        credits = self._exchange_credits(k, scored)
        sums = {shard: part.sums for shard, part in scored.items()}
        known = self._exchange_losses(k, sums, start)
        return pinned(self.board, k, known, self.piece.timeout_s), credits

    def _exchange_credits(self, k: int, scored: dict[int, Scored]) -> Credits:
        """What every scorer's shards say about the own blocks, in shard order."""
        if self.context.activity is None:
            return {}
        found: dict[int, dict[int, np.ndarray]] = {}  # by shard, by node
        for rank, share in enumerate(self.piece.shares):
            if not share.nodes or not scored:
                continue
            parts = {s: one.of(share.nodes, self.context) for s, one in scored.items()}
            if rank == self.rank:
                found |= parts
            else:
                assert self.link is not None
                self.link.post([rank], f"credit-{k}-{self.rank}", parts)
        if not self.share.nodes:
            return {}
        for rank in self.scorers:
            if rank != self.rank:
                assert self.link is not None
                found |= self.link.take(f"credit-{k}-{rank}")
        n_shards = self.context.config.n_shards
        credits = fold_credits(self.context, [found[s] for s in range(n_shards)])
        self.outcome.counters.bytes_moved += n_bytes(*credits.values())
        return credits

    def _exchange_points(self, k: int, own: dict[int, Message]) -> dict[int, Message]:
        if self.link is None:
            return own
        sent = {n: (m.point.cpu().numpy(), m.probe_std) for n, m in own.items()}
        others = [r for r in self.scorers if r != self.rank]
        if own:
            self.link.post(others, f"points-{k}-{self.rank}", sent)
        if not self.share.shards:
            return own
        messages = dict(own)
        for rank, share in enumerate(self.piece.shares):
            if rank != self.rank and share.nodes:
                for node, (point, std) in self.link.take(f"points-{k}-{rank}").items():
                    messages[node] = Message(
                        tensor(point, self.context.device), probe_std=std
                    )
        return messages

    def _exchange_losses(
        self, k: int, sums: dict[int, np.ndarray], start: float
    ) -> LossRecord | None:
        """Partial losses to rank 0, which publishes; the record to everybody."""
        if self.rank != 0:
            assert self.link is not None
            if sums:
                self.link.post([0], f"losses-{k}-{self.rank}", sums)
            record: LossRecord = self.link.take(f"record-{k}")
            return record
        for rank in self.scorers:
            if rank != 0:
                assert self.link is not None
                sums.update(self.link.take(f"losses-{k}-{rank}"))
        return self._publish(k, sums, start)

    def _publish(
        self,
        k: int,
        sums: dict[int, np.ndarray],
        start: float,
        steps: tuple[int, ...] = (),
    ) -> LossRecord:
        """Add up the shards' losses, publish the record and send it to everybody.

        ``steps`` : that were scored; by default all nodes' step k.
        """
        n_shards = self.context.config.n_shards
        losses = fold_losses(self.context, [sums[shard] for shard in range(n_shards)])
        record = LossRecord(
            self.context.spec.run_id,
            k,
            losses,
            steps or (k,) * self.context.n_nodes,
            self.context.subset(k),
        )
        self.board.publish(record)
        if self.link is not None:
            ranks = range(len(self.piece.shares))
            others = [rank for rank in ranks if rank != self.rank]
            self.link.post(others, f"record-{k}", record)
        self.outcome.scores.append((record, start, time.time()))
        used = self.outcome.counters
        used.n_loss_evals += len(losses)
        used.n_samples += len(losses) * self.context.data.n_loss
        used.bytes_moved += record_bytes(record) * self.context.n_nodes
        return record


def kind_of(context: Context) -> type[Worker]:
    """Which worker runs a run's rounds."""
    from pipeline.free_pipeline import FreePipelinedWorker  # derived from ``Worker``
    from pipeline.pipelined import PipelinedWorker

    if not context.config.pipelined:
        return Worker
    return PipelinedWorker if context.config.barrier else FreePipelinedWorker


def run_in_process(
    context: Context, piece: Piece, states: dict[int, NodeState], board: LocalBoard
) -> tuple[dict[int, NodeState], Outcome]:
    """Run a piece with one share in this process."""
    worker = kind_of(context)(context, piece, 0, board, None)
    states = worker.run(states)
    return states, worker.outcome


def run_on_worker(piece: Piece, rank: int, packed: Packed) -> tuple[Packed, Outcome]:
    """Run one rank of a piece inside a Dask task."""
    context = context_of(piece.spec)
    alone = len(piece.shares) == 1
    link = None if alone else Link(piece.name, piece.addresses, rank, piece.timeout_s)
    board = board_of_task(piece.board, piece.spec.run_id)
    worker = kind_of(context)(context, piece, rank, board, link)
    worker.log = log_update
    states = {node: unpack(*one, device=context.device) for node, one in packed.items()}
    try:
        if link is not None:
            link.meet()
        states = worker.run(states)
        if link is not None:
            link.settle()
    except PieceAborted as err:
        return {}, Outcome(aborted=str(err))
    finally:
        end_piece(piece.name)
    return {node: pack(one) for node, one in states.items()}, worker.outcome
