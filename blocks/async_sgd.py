"""Asynchronous SGD (Islamov, Safaryan, Alistarh 2024): gradients at stale models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.algorithm import (
    SERVER,
    Message,
    Node,
    Observation,
    Oracle,
    Payload,
    step_rng,
)
from blocks.optimisers import Momentum, decayed
from blocks.replica import ReplicaSGD, check, packed
from blocks.team import Team

Assignment = Literal["finished", "random", "shuffled"]

_JOBS = 6  # the stream of `step_rng` that assigns jobs


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """The model that all nodes work on."""

    params: Tensor  # (P,) θ
    buffers: Tensor | None  # (B,) normalisation statistics, the newest that arrived
    optimiser: Momentum
    n_nodes: int
    n_folded: int = 0  # messages so far


@dataclass(frozen=True, slots=True)
class ServedSGD(ReplicaSGD):
    """Base of methods whose server steps against gradients as they arrive.

    x ← x − α·v with v ← μ v + g + λ x, g a gradient at an earlier x. α follows the
    cosine over all messages: message i of n_steps · n_nodes.
    """

    step_size: float = 0.07
    momentum: float = 0.0
    assignment: Assignment = "finished"

    modes: ClassVar[frozenset[str]] = frozenset({"async"})
    served: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        known = self.assignment in ("finished", "random", "shuffled")
        rule = '"finished", "random" or "shuffled"'
        check("assignment", self.assignment, rule, known)

    def open(self, params: Tensor, buffers: Tensor | None, team: Team) -> Server:
        """Server at ``params`` (P,) before the first message."""
        own = None if buffers is None else buffers.clone()
        return Server(params.clone(), own, Momentum.zeros(params), team.n_nodes)

    def view(self, server: Server) -> Message:
        """The model now."""
        payload = packed(server.params, server.buffers)
        return Message(point=server.params, buffers=server.buffers, payload=payload)

    def next_job(self, finished: int, count: int, team: Team) -> int:
        """Return the node that is given the next job.

        Parameters
        ----------
        finished : int — the node whose message has just been folded.
        count : int — jobs given out in this way before this one, from 0; the first job
            of every node, which it has at the start, does not count.
        team : Team — of the nodes; its seed decides.
        """
        if self.assignment == "finished":
            return finished
        if self.assignment == "random":
            rng = step_rng(team.seed, 0, count, _JOBS)
            return int(rng.integers(team.n_nodes))
        cycle, place = divmod(count, team.n_nodes)
        order = step_rng(team.seed, 0, cycle, _JOBS).permutation(team.n_nodes)
        return int(order[place])

    def fold(
        self,
        server: Server,
        gradient: Tensor,
        start: int,
        buffers: Tensor | None,
        n_steps: int,
    ) -> Server:
        """Step against the gradient of θ[start : start + len(gradient)].

        Parameters
        ----------
        buffers : (B,) those that come with it; None: the server's stay.
        n_steps : planned steps of every node; 0 = open-ended.
        """
        here = slice(start, start + len(gradient))
        params = server.params.clone()
        velocity = server.optimiser.velocity.clone()
        if self.weight_decay:
            gradient = gradient + self.weight_decay * params[here]
        optimiser, direction = Momentum(velocity[here]).step(gradient, self.momentum)
        planned = n_steps * server.n_nodes
        alpha = decayed(self.step_size, self.final_fraction, server.n_folded, planned)
        velocity[here] = optimiser.velocity
        params[here] = params[here] - alpha * direction
        return replace(
            server,
            params=params,
            buffers=server.buffers if buffers is None else buffers,
            optimiser=Momentum(velocity),
            n_folded=server.n_folded + 1,
        )


def unpacked(payload: Payload) -> tuple[Tensor, Tensor | None]:
    """Parameters and buffers of a payload made by ``packed``."""
    return payload[0], payload[1] if len(payload) > 1 else None


@dataclass(frozen=True, slots=True)
class AsyncSGDState:
    """A node remembers how many gradients it has handed over, and nothing else."""

    n_done: int = 0


@dataclass(frozen=True, slots=True)
class AsyncSGD(ServedSGD):
    """A server that steps against each node's gradient the moment it arrives.

    A job is one minibatch gradient at the model as it was when the job was given out;
    when it arrives, the others have moved the model on. Nobody waits for anybody.

    Parameters
    ----------
    assignment : who gets the next job: the node that has "finished", a "random" one, or
        the next of a "shuffled" order, drawn anew each time all have had one.
    momentum : float — μ, at the server; 0 by default, for stale gradients add up in the
        velocity as in a momentum of their own.
    step_size, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``.

    Notes
    -----
    In the manner of the paper: x ← x − η g with g at an earlier x and the assignments
    are its own; momentum, decay, cosine and buffers are ours. Buffers are those of the
    newest message. Cost per step: 1 gradient evaluation; a node receives 4 (P + B)
    bytes and sends as many.

    References
    ----------
    Islamov, Safaryan & Alistarh (2024). AsGrad: A Sharp Unified Analysis of
    Asynchronous-SGD Algorithms. AISTATS, arXiv 2310.20452.
    """

    kind: Literal["async-sgd"] = "async-sgd"

    paper: ClassVar[str] = "Islamov, Safaryan & Alistarh 2024 (arXiv 2310.20452)"
    defaults: ClassVar[Mapping[str, Any]] = {"nodes": 4}

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[AsyncSGDState, Message]:
        """Have done nothing yet; the model is the server's."""
        return AsyncSGDState(), Message(point=params.clone(), buffers=node.buffers)

    def step(
        self,
        state: AsyncSGDState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[AsyncSGDState, Message]:
        """Hand over the gradient of the next minibatch at the model given."""
        params, buffers = unpacked(observation.inbox[SERVER])
        answer = oracle.gradient(params, buffers, minibatch=state.n_done)
        payload = packed(answer.gradient, answer.buffers)
        message = Message(point=params, buffers=answer.buffers, payload=payload)
        return AsyncSGDState(state.n_done + 1), message

    def serve(
        self, server: Server, node: int, message: Message, n_steps: int
    ) -> Server:
        """Step against the gradient that has arrived."""
        gradient, buffers = unpacked(message.payload)
        return self.fold(server, gradient, 0, buffers, n_steps)
