"""What answers take on their way: from worker to worker, to the client and back."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from distributed import Client, get_client, wait

from blocks.algorithm import LossRecord
from pipeline.context import RunSpec, context_of
from pipeline.loss_board import VariableBoard
from pipeline.mailbox import Link, end_piece
from pipeline.pending import Pending

LIMIT_S = 120.0
TIMES = 30  # that a latency is taken; the median counts
TASKS = 120  # submitted at once
SEVERAL = 16  # posts under way at once


def posts(
    name: str, addresses: tuple[str, ...], rank: int, spec: RunSpec
) -> tuple[float, float]:
    """Time posts of one block's point from worker to worker: alone, and several.

    Several are under way at once, each on a connection of its own that stays open, as
    with as many peers.
    """
    value = {0: (np.zeros(context_of(spec).blocks[0].size, np.float32), 0.0)}
    link = Link(name, addresses, rank, LIMIT_S)
    link.meet()
    spent: dict[int, list[float]] = {1: [], SEVERAL: []}
    for i in range(TIMES):
        for n, found in spent.items():
            there, back = f"there-{i}-{n}", f"back-{i}-{n}"
            start = time.perf_counter()
            if rank == 0:
                for j in range(n):
                    link.post([1], f"{there}-{j}", value)
                link.take(back)
            else:
                for j in range(n):
                    link.take(f"{there}-{j}")
                link.post([0], back, value)
            found.append(time.perf_counter() - start)
    link.settle()
    end_piece(name)
    one_s, several_s = (statistics.median(found) for found in spent.values())
    return one_s / 2, max(several_s - one_s, 0.0) / (SEVERAL - 1)


def variable(name: str, spec: RunSpec) -> tuple[float, float]:
    """Time publishing to, and reading from, a Variable."""
    board = VariableBoard(name, spec.run_id, client=get_client())
    board.open()
    board.version()
    sets, gets = [], []
    for k in range(TIMES):
        losses = (2.3,) * spec.config.algorithm.n_probes
        start = time.perf_counter()
        board.publish(LossRecord(spec.run_id, k, losses, (k,) * 8, 0))
        middle = time.perf_counter()
        board.newest(k, LIMIT_S)
        sets.append(middle - start)
        gets.append(time.perf_counter() - middle)
    board.delete()
    return statistics.median(sets), statistics.median(gets)


def when(*_: Any) -> float:
    """Say when it is run."""
    return time.time()


def round_trip(client: Client, address: str) -> float:
    """Seconds until the client has the answer to a task that does nothing."""
    pending: Pending[int] = Pending(client)
    spent = []
    for i in range(TIMES):
        start = time.perf_counter()
        future = client.submit(when, i, workers=[address], pure=False)
        pending.add(future, i, [address])
        answers: list[Any] = []
        while not answers:
            answers, _ = pending.take(1.0, [address])
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def throughput(client: Client, addresses: tuple[str, ...], payload: bytes) -> float:
    """Seconds of client and scheduler for each of many tasks that bring a point."""
    start = time.perf_counter()
    futures = [
        client.submit(when, payload, i, workers=[addresses[i % 2]], pure=False)
        for i in range(TASKS)
    ]
    wait(futures, timeout=LIMIT_S)
    return (time.perf_counter() - start) / TASKS


def chain(client: Client, addresses: tuple[str, str]) -> float:
    """Seconds from the end of a task to the start of one that waits for it."""
    futures = [client.submit(time.sleep, 0.3, workers=[addresses[0]], pure=False)]
    for i in range(TIMES):
        where = [addresses[i % 2]]
        last = futures[-1]
        futures.append(client.submit(when, last, workers=where, pure=False))
    wait(futures, timeout=LIMIT_S)
    ends = client.gather(futures[1:])
    return statistics.median(np.diff(ends))
