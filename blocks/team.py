"""Replica methods: who the others are, who listens to whom, what a server does.

A replica method has one node a replica of the whole network (``blockwise`` false) and
``NEIGHBOURS`` in its ``information`` if the nodes talk. Beside the interface of
``blocks.algorithm`` it declares

- ``senders(node, team, step, scalars)``: whom a node listens to at its step ``step``,
  a pure function that every worker can ask about every node. A node that listens to
  nobody moves no bytes and waits for nobody.
- ``tells``: true if its messages carry ``scalars``, which every node then hears at
  every step; false (default) spares the round that wait.
- ``by_layer``: true if a gradient takes as many steps as the network has layers.
- ``data``: "shard" (default; each node has its own part of the training data), "whole"
  (each walks all of it in its own order) or "pooled" (all share each minibatch).

A round costs ``batch_size`` samples a node.

- ``extra_samples(n_loss)``: samples that a node passes forward beside its gradients,
  (once, per step on average), where a common loss is on ``n_loss`` samples; for
  budgets. Without it: none.

A *served* method (``served`` true, asynchronous only) has a model in one place: every
node's message is folded into it by ``serve``, in the order of arrival, and a node's
step finds ``view(server)`` in its inbox under ``SERVER``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from blocks.algorithm import Message, Payload, Scalars, n_bytes

SCALAR_BYTES = 8


@dataclass(frozen=True, slots=True)
class Team:
    """The nodes of a replica method.

    Parameters
    ----------
    n_samples : by node, the training samples it may use.
    machines : by node, the machine that it is on, from 0.
    seed : int — the run's seed, for choices that all nodes must make alike.
    layers : (start, stop) of each layer's slice of θ, in order; (): one layer.
    """

    n_samples: tuple[int, ...]
    machines: tuple[int, ...]
    seed: int = 0
    layers: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, n_nodes: int, n_samples: int, seed: int = 0, machines: int = 1) -> Team:
        """Equal nodes on ``machines`` machines, in contiguous groups.

        Parameters
        ----------
        n_samples : int — of each node.
        """
        where = tuple(node * machines // n_nodes for node in range(n_nodes))
        return cls((n_samples,) * n_nodes, where, seed)

    @property
    def n_nodes(self) -> int:
        """Participants."""
        return len(self.n_samples)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole minibatches in the smallest node's samples; at least 1."""
        fewest = min(self.n_samples)
        return max(fewest // min(batch_size, fewest), 1)


class Talking(Protocol):
    """A replica method whose nodes listen to each other."""

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """Whom ``node`` listens to at its step ``step``; not itself."""


class Served(Protocol):
    """A replica method whose model is held in one place."""

    def open(self, params: Tensor, buffers: Tensor | None, team: Team) -> Any:
        """Server state before the first message: a frozen dataclass."""

    def serve(self, server: Any, node: int, message: Message, n_steps: int) -> Any:
        """Server state after folding one node's message.

        ``n_steps``: planned steps of every node, for schedules; 0 = open-ended.
        """

    def view(self, server: Any) -> Message:
        """The model now: nodes get its ``payload``; its ``point`` is evaluated."""


def listens(
    algorithm: Any, node: int, team: Team, step: int, scalars: Scalars
) -> set[int]:
    """Whom a node hears at a step, checked: other nodes of the team only.

    Raises
    ------
    ValueError — if the algorithm names the node itself or one that does not exist.
    """
    senders = set(algorithm.senders(node, team, step, scalars))
    if not senders <= set(range(team.n_nodes)) - {node}:
        raise ValueError(
            f"`senders` must name other nodes of the {team.n_nodes}; got "
            f"{sorted(senders)} for node {node}. Correct the algorithm."
        )
    return senders


def inbox_of(
    node: int, senders: set[int], payloads: Mapping[int, Payload]
) -> dict[int, Payload]:
    """The inbox of a node: own payload and the senders', in node order, or nothing."""
    if not senders:
        return {}
    return {j: payloads[j] for j in sorted(senders | {node})}


def received_bytes(
    node: int, senders: set[int], payloads: Mapping[int, Payload], scalars: Scalars
) -> int:
    """Bytes that a node receives at one step: payloads, and all others' scalars."""
    told = sum(len(own) for j, own in enumerate(scalars) if j != node)
    return sum(n_bytes(*payloads[j]) for j in senders) + told * SCALAR_BYTES
