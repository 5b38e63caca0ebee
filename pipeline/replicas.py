"""The policy of asynchronous replica methods: who gets which job, what is folded.

Pure of I/O: an executor runs the jobs. Replicas that talk to each other get, at a step
at which they listen, the newest payloads that have been accepted. Where a server holds
the model, its state lives here: every accepted message is folded in the order of
arrival, and a job carries the model as it was when the job was given out.
"""

from __future__ import annotations

import pickle
from collections import deque
from dataclasses import replace
from typing import Any

from torch import Tensor

from blocks.algorithm import SERVER, Message
from blocks.team import inbox_of, listens
from pipeline.context import Context
from pipeline.jobs import (
    Job,
    JobDone,
    JobExecutor,
    JobLost,
    freeze,
    thaw,
    to_host,
)
from pipeline.pack import pack, unpack
from pipeline.rounds import Outcome

MAX_JOB_STEPS = 50
View = tuple[bytes, int, tuple[int, ...]]  # pickled inbox, seen version, inbox steps


class ReplicaCoordinator:
    """Drives one run over an executor until its limits are reached.

    Parameters
    ----------
    steps_limit : int or None — steps of every replica.
    updates_limit : int or None — steps of all replicas together.
    """

    published = -1

    def __init__(
        self,
        context: Context,
        executor: JobExecutor,
        steps_limit: int | None,
        updates_limit: int | None,
    ) -> None:
        assert context.team is not None
        self.context, self.executor, self.team = context, executor, context.team
        self.algorithm = context.algorithm
        self.steps_limit, self.updates_limit = steps_limit, updates_limit
        first, init_cost = context.start()
        nodes = list(first)
        self.states = {node: freeze(first[node]) for node in nodes}
        self.messages: dict[int, Message] = {n: first[n][1] for n in nodes}
        self.steps = dict.fromkeys(nodes, 0)
        self.server: Any = None
        if context.served:
            initial = context.initial
            self.server = self.algorithm.open(initial, context.buffers, self.team)
        self.count = 0  # updates folded
        self.issued = 0
        self.running: dict[int, Job] = {}
        self.waiting: dict[int, deque[View]] = {node: deque() for node in nodes}
        self.begun = False
        self.outcome = Outcome(in_order=True, counters=init_cost)
        self.n_reruns = 0
        self.diverged = False
        self.stopping = False

    # -- giving out ------------------------------------------------------------------

    def fill(self) -> None:
        """Give every idle replica its next job."""
        if self.stopping:
            return
        if self.server is not None and not self.begun:
            for node in self.waiting:
                self.waiting[node].append(self._view())
        self.begun = True
        for node in self.waiting:
            if node not in self.running:
                self._give(node)

    def _give(self, node: int) -> None:
        step = self.steps[node]
        left = [MAX_JOB_STEPS]
        if self.steps_limit is not None:
            left.append(self.steps_limit - step)
        if self.updates_limit is not None:
            left.append(self.updates_limit - self.issued)
        if min(left) <= 0:
            return
        if self.server is None:
            inbox, seen, inbox_steps = self._inbox(node, step)
            n_steps = self._until_next(node, step, min(left))
        elif self.waiting[node]:
            inbox, seen, inbox_steps = self.waiting[node].popleft()
            n_steps = 1
        else:
            return
        job = Job(node, step, n_steps, self.states[node], inbox, seen, inbox_steps)
        self.running[node] = job
        self.issued += n_steps
        self.executor.submit(job)

    def _view(self) -> View:
        """The server's model now."""
        payload = self.algorithm.view(self.server).payload
        return pickle.dumps(to_host({SERVER: payload}), protocol=5), self.count, ()

    def _inbox(self, node: int, step: int) -> View:
        """The newest payloads of whom a replica listens to."""
        if not self.context.talks:
            return pickle.dumps({}), -1, ()
        heard = listens(self.algorithm, node, self.team, step, ())
        payloads = {j: message.payload for j, message in self.messages.items()}
        inbox = to_host(inbox_of(node, heard, payloads))
        if not inbox:
            return pickle.dumps({}), -1, ()
        steps = tuple(self.steps[j] if j in inbox else -1 for j in self.steps)
        return pickle.dumps(inbox, protocol=5), self.count, steps

    def _until_next(self, node: int, step: int, most: int) -> int:
        """Steps up to the next one at which the replica listens again."""
        n_steps = 1
        while n_steps < most and not (
            self.context.talks
            and listens(self.algorithm, node, self.team, step + n_steps, ())
        ):
            n_steps += 1
        return n_steps

    # -- accepting -------------------------------------------------------------------

    def accept(self, done: JobDone | JobLost) -> None:
        """Fold one answer into what is known; a lost job is given out again."""
        job = self.running.get(done.job.node)
        if job is None or job.step != done.job.step:
            return  # a second answer to a job that is known already
        if isinstance(done, JobLost):
            self.n_reruns += 1
            self.executor.submit(job)
            return
        self.n_reruns += done.moved
        del self.running[job.node]
        self._fold(job, done)

    def _fold(self, job: Job, done: JobDone) -> None:
        node = job.node
        self.states[node] = done.state
        message = thaw(self.context, done.state)[1]
        self.messages[node] = message
        self.steps[node] = job.step + job.n_steps
        outcome = self.outcome
        nobody = (-1,) * self.context.n_nodes
        for i, (start, end) in enumerate(done.times):
            seen = job.seen if i == 0 else -1
            outcome.updates.append((node, job.step + i, seen, start, end, done.worker))
            heard = job.inbox_steps if i == 0 and job.inbox_steps else nobody
            outcome.inboxes.append(heard)
            outcome.busy_s += end - start
        outcome.counters.add(done.counters)
        outcome.counters.bytes_moved += self._bytes(job, message)
        self.count += job.n_steps
        if self.server is not None:
            n_steps = self.context.spec.n_steps
            self.server = self.algorithm.serve(self.server, node, message, n_steps)
            following = self.algorithm.next_job(node, self.count - 1, self.team)
            self.waiting[following].append(self._view())

    def _bytes(self, job: Job, message: Message) -> int:
        """What the job's inbox held of others, and what went back to a server."""
        if self.server is not None:
            view = self.algorithm.view(self.server)
            return int(view.payload_bytes) + message.payload_bytes
        senders = [j for j, s in enumerate(job.inbox_steps) if s >= 0 and j != job.node]
        return sum(self.messages[j].payload_bytes for j in senders)

    # -- what the loop asks ----------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no job is given out."""
        return not self.running

    def solution(self) -> tuple[Tensor, Tensor | None]:
        """Parameters and buffers that the run stands for now."""
        if self.server is not None:
            view: Message = self.algorithm.view(self.server)
            return view.solution, view.buffers
        return self.context.solution(self.messages)

    def to_plain(self) -> dict[str, Any]:
        """What a checkpoint holds; jobs that are given out are not in it."""
        return {
            "states": {n: pickle.loads(frozen) for n, frozen in self.states.items()},
            "steps": dict(self.steps),
            "count": self.count,
            "server": pack(self.server),
        }

    def restore(self, plain: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for node, packed in plain["states"].items():
            self.states[node] = pickle.dumps(tuple(packed), protocol=5)
            self.messages[node] = thaw(self.context, self.states[node])[1]
        self.steps = dict(plain["steps"])
        self.count = self.issued = plain["count"]
        self.outcome = Outcome(in_order=True)
        tree, arrays = plain["server"]
        self.server = unpack(tree, arrays, self.context.device)


def lost(job: Job) -> JobLost:
    """A job that must be given out again; its data stay with the coordinator."""
    return JobLost(replace(job, state=b"", inbox=b""))
