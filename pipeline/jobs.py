"""Work of an asynchronous replica: some local steps after one look at the others."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from blocks.algorithm import Message, Payload
from blocks.oracle import Counters
from pipeline.context import Context
from pipeline.pack import pack, tensor, unpack

Inbox = dict[int, tuple[np.ndarray, ...]]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Job:
    """Steps ``step`` … ``step + n_steps − 1`` of one replica; all it needs is inside.

    The replica's state travels with the job and comes back with its answer: no worker
    holds the only copy of anything, and a job that is lost is simply given out again.
    """

    node: int
    step: int
    n_steps: int
    state: bytes  # pickled ``pack`` of (state, message)
    inbox: bytes  # pickled payloads by node, for the first step
    seen: int  # updates folded before the inbox was filled
    inbox_steps: tuple[int, ...] = ()  # by node; −1 = not in the inbox


@dataclass(frozen=True, slots=True)
class JobDone:
    """Answer of a job."""

    job: Job
    state: bytes
    times: tuple[tuple[float, float], ...]  # (start, end) of each step, run's clock
    counters: Counters = field(default_factory=Counters)
    worker: str = ""
    moved: bool = False  # Dask gave it to another worker, as its own was gone


@dataclass(frozen=True, slots=True)
class JobLost:
    """A job that died with its worker."""

    job: Job


class JobExecutor(Protocol):
    """Runs jobs; ``poll`` never waits longer than it is told."""

    n_workers: int

    def submit(self, job: Job) -> None:
        """Queue a job on its replica's worker."""

    def poll(self, timeout_s: float) -> list[JobDone | JobLost]:
        """Answers since the last call; waits for the first at most ``timeout_s``."""

    def now(self) -> float:
        """Seconds on the run's clock (virtual or wall)."""


def freeze(node_state: tuple[Any, Message]) -> bytes:
    """A replica's state and message, opaque: Dask need not walk it."""
    return pickle.dumps(pack(node_state), protocol=5)


def thaw(context: Context, frozen: bytes) -> tuple[Any, Message]:
    """What ``freeze`` was given."""
    tree, arrays = pickle.loads(frozen)
    state, message = unpack(tree, arrays, context.device)
    return state, message


def to_host(payloads: dict[int, Payload]) -> Inbox:
    """Payloads as arrays in host memory."""
    return {
        node: tuple(t.cpu().numpy() for t in payload)
        for node, payload in payloads.items()
    }


def run_job(context: Context, job: Job, clock: Clock = time.time) -> JobDone:
    """Take a job's steps in this process; injected delays are waited out."""
    state, message = thaw(context, job.state)
    arrays: Inbox = pickle.loads(job.inbox)
    inbox = {
        node: tuple(tensor(a, context.device) for a in payload)
        for node, payload in arrays.items()
    }
    delay = context.config.delays.get(job.node, 0.0)
    times, counters = [], Counters()
    for i in range(job.n_steps):
        start = clock()
        if delay and clock is time.time:
            time.sleep(delay)  # a straggler on request, not a way to wait for anything
        state, message, used = context.update(
            job.node, job.step + i, state, None, inbox if i == 0 else None
        )
        counters.add(used)
        times.append((start, clock()))
    bare = replace(job, state=b"", inbox=b"")
    return JobDone(bare, freeze((state, message)), tuple(times), counters)
