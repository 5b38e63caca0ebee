"""Synchronous rounds: the plain loop, on any number of workers, and once more."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from blocks.algorithm import LossRecord, Node, Observation, step_rng
from blocks.partition import join, split
from pipeline.engines import InProcess
from pipeline.loss_board import LocalBoard
from pipeline.mailbox import Mailbox
from pipeline.pack import pack, unpack
from pipeline.placement import place
from pipeline.rounds import Piece, Worker, run_in_process

N_ROUNDS = 8


def plain_loop(c, n_rounds: int) -> torch.Tensor:
    """The whole method, without the harness."""
    algorithm, seed, n = c.algorithm, c.config.seed, len(c.blocks)
    parts = split(c.initial, c.blocks)
    who = [Node(i, n, c.blocks[i], seed) for i in range(n)]
    nodes = [
        algorithm.init(w, parts[w.index], None, step_rng(seed, w.index, -1))
        for w in who
    ]
    for k in range(n_rounds):
        theta, total = join([m.point for _, m in nodes], c.blocks, len(c.initial)), 0.0
        for shard in range(4):
            for x, y in c.data.batches("loss", [shard]):
                total += float(
                    c.loss_function(c.model.forward(theta, x), y).double().sum()
                )
        record = LossRecord("run", k, (total / 200,), (k,) * n)
        seen = Observation(k, n_rounds, algorithm.information, record)
        nodes = [
            algorithm.step(s, seen, None, step_rng(seed, i, k))
            for i, (s, _) in enumerate(nodes)
        ]
    return join([m.solution for _, m in nodes], c.blocks, len(c.initial))


def engine_result(context, n_rounds: int = N_ROUNDS) -> torch.Tensor:
    engine = InProcess(context.spec)
    engine.run(0, n_rounds)
    return context.solution(engine.messages())[0]


@pytest.mark.parametrize("blocks", ["by_layer", "by_unit:3"])
def test_sync__is_the_plain_loop_bit_for_bit(blocks, tiny, context_for) -> None:
    context = context_for(tiny(blocks=blocks))
    found = engine_result(context)
    assert torch.equal(found, plain_loop(context, N_ROUNDS))
    assert not torch.equal(found, context.initial)


def test_sync__cutting_rounds_into_pieces_changes_nothing(tiny, context_for) -> None:
    context = context_for(tiny())
    engine = InProcess(context.spec)
    for first, n_rounds in ((0, 1), (1, 4), (5, 3)):
        assert engine.run(first, n_rounds).n_done == n_rounds
        engine.restore(engine.snapshot())
    cut, _ = context.solution(engine.messages())
    assert torch.equal(cut, engine_result(context))


class ThreadLink:
    """Posts between the threads of one process, where workers would be processes."""

    def __init__(self, boxes: list[Mailbox], rank: int) -> None:
        self.boxes, self.rank = boxes, rank

    def post(self, ranks, name, value) -> None:
        for rank in ranks:
            self.boxes[rank].put("p", name, value)

    def take(self, name):
        return self.boxes[self.rank].take("p", name, 30.0)


def run_on_threads(context, n_workers: int, own=()) -> dict[int, torch.Tensor]:
    shares = place(context.n_nodes, context.config.n_shards, n_workers, own)
    piece = Piece(context.spec, "p", "b", 0, N_ROUNDS, shares, 30.0)
    boxes, results = [Mailbox() for _ in shares], {}
    board = PatientBoard()

    def work(rank: int) -> None:
        states = {node: context.init_node(node) for node in shares[rank].nodes}
        worker = Worker(context, piece, rank, board, ThreadLink(boxes, rank))
        results.update(worker.run(states))

    threads = [threading.Thread(target=work, args=(r,)) for r in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return {node: message.solution for node, (_, message) in results.items()}


class PatientBoard(LocalBoard):
    """A board of this process that several threads read."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def publish(self, record) -> bool:
        with self.changed:
            done = super().publish(record)
            self.changed.notify_all()
            return done

    def newest(self, at_least, timeout_s):
        with self.changed:
            self.changed.wait_for(
                lambda: self._record is not None and self._record.version >= at_least,
                timeout_s,
            )
            return super().newest(at_least, timeout_s)


@pytest.mark.parametrize(("n_workers", "own"), [(1, ()), (2, ()), (4, ()), (3, (1,))])
def test_sync__is_the_same_on_any_number_of_workers(
    n_workers, own, tiny, context_for
) -> None:
    context = context_for(tiny())
    parts = run_on_threads(context, n_workers, own)
    joined = context.join([parts[node] for node in range(context.n_nodes)])
    assert torch.equal(joined, engine_result(context))


def test_piece__run_again_on_a_board_that_is_ahead_folds_the_same_records(
    tiny, context_for
) -> None:
    context, board = context_for(tiny()), LocalBoard()
    shares = place(context.n_nodes, context.config.n_shards, 1)
    piece = Piece(context.spec, "p", "b", 0, N_ROUNDS, shares, 1.0)
    start = {node: context.init_node(node) for node in range(context.n_nodes)}
    packed = {node: pack(one) for node, one in start.items()}
    first, outcome = run_in_process(context, piece, start, board)
    assert board.newest(0, 0.0).version == N_ROUNDS - 1
    again = {node: unpack(*one) for node, one in packed.items()}
    second, repeated = run_in_process(context, replace(piece), again, board)
    for node in first:
        assert torch.equal(first[node][1].solution, second[node][1].solution)
    assert [r for r, *_ in outcome.scores] == [r for r, *_ in repeated.scores]


def test_piece__stops_at_the_round_whose_loss_is_not_finite(tiny, context_for) -> None:
    context = context_for(tiny(loss="squared", algorithm={"step_size": 1e25}))
    outcome = InProcess(context.spec).run(0, N_ROUNDS)
    assert outcome.n_done < N_ROUNDS
    assert len(outcome.scores) == outcome.n_done + 1
    assert not np.isfinite(outcome.scores[-1][0].loss)
