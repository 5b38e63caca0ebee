"""What replicas tell each other in a synchronous round: scalars, then payloads.

Who listens to whom at a step is a pure function of the algorithm, so every worker knows
to whom it must post and whose posts it must wait for. A replica that listens to nobody
waits for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from blocks.algorithm import Message, Payload, Scalars
from blocks.oracle import Counters
from blocks.team import inbox_of, listens, received_bytes
from pipeline.context import Context
from pipeline.mailbox import Link
from pipeline.pack import tensor

Heard = dict[int, tuple[dict[int, Payload], Scalars]]  # by node: inbox, scalars
NodeState = tuple[Any, Message]


class Talk:
    """One worker's side of the exchange between replicas.

    Parameters
    ----------
    owners : rank of the worker of each node.
    link : to the other workers; None when there is no other.
    counters : where received bytes are counted.
    latency_s : extra seconds that anything from another machine takes.
    """

    def __init__(
        self,
        context: Context,
        owners: Mapping[int, int],
        rank: int,
        link: Link | None,
        counters: Counters,
        latency_s: float,
    ) -> None:
        assert context.team is not None
        self.context, self.team = context, context.team
        self.owners, self.rank, self.link = owners, rank, link
        self.counters = counters
        self.latency_s = latency_s
        self.tells = bool(getattr(context.algorithm, "tells", False))
        self.own = [node for node, owner in owners.items() if owner == rank]

    def round(self, k: int, states: Mapping[int, NodeState]) -> Heard:
        """Exchange the messages of step k; what each own node has heard."""
        messages = {node: message for node, (_, message) in states.items()}
        scalars = self._scalars(k, messages)
        algorithm, team = self.context.algorithm, self.team
        senders = {
            node: listens(algorithm, node, team, k, scalars) for node in self.owners
        }
        payloads = self._payloads(k, messages, senders)
        for node in self.own:
            self.counters.bytes_moved += received_bytes(
                node, senders[node], payloads, scalars
            )
        pairs = {(node, j) for node in self.own for j in senders[node]}
        self._travel(any(self._apart(*pair) for pair in pairs))
        return {
            node: (inbox_of(node, senders[node], payloads), scalars)
            for node in self.own
        }

    def _scalars(self, k: int, messages: Mapping[int, Message]) -> Scalars:
        """Every node's scalars of step k, by node; () if the method tells none."""
        told = {node: m.scalars for node, m in messages.items()}
        if not self.tells:
            if any(told.values()):
                raise ValueError(
                    "`scalars` must come with `tells = True`; got some from "
                    f"{self.context.algorithm.kind}. Declare it in the algorithm."
                )
            return ()
        if self.link is not None:
            ranks = set(self.owners.values())
            others = [rank for rank in ranks if rank != self.rank]
            if self.own:
                self.link.post(others, f"scalars-{k}-{self.rank}", told)
                for rank in others:
                    told |= self.link.take(f"scalars-{k}-{rank}")
        self._travel(len(set(self.team.machines)) > 1)
        return tuple(told[node] for node in sorted(told))

    def _payloads(
        self,
        k: int,
        messages: Mapping[int, Message],
        senders: Mapping[int, set[int]],
    ) -> dict[int, Payload]:
        """Payloads of the own nodes and of all that they listen to."""
        payloads = {node: m.payload for node, m in messages.items()}
        if self.link is None:
            return payloads
        for rank in set(self.owners.values()) - {self.rank}:
            wanted = self._between(self.rank, rank, senders)
            if wanted:
                arrays = {j: [t.cpu().numpy() for t in payloads[j]] for j in wanted}
                self.link.post([rank], f"payloads-{k}-{self.rank}", arrays)
        for rank in set(self.owners.values()) - {self.rank}:
            if self._between(rank, self.rank, senders):
                posted = self.link.take(f"payloads-{k}-{rank}")
                for j, arrays in posted.items():
                    device = self.context.device
                    payloads[j] = tuple(tensor(a, device) for a in arrays)
        return payloads

    def _between(
        self, sender: int, receiver: int, senders: Mapping[int, set[int]]
    ) -> list[int]:
        """Nodes of one worker that some node of another worker listens to."""
        found = set()
        for node, heard in senders.items():
            if self.owners[node] == receiver:
                found |= {j for j in heard if self.owners[j] == sender}
        return sorted(found)

    def _apart(self, node: int, other: int) -> bool:
        return self.team.machines[node] != self.team.machines[other]

    def _travel(self, far: bool) -> None:
        """Wait as long as a message between machines takes, if that is asked for."""
        if far and self.latency_s and self.own:
            time.sleep(self.latency_s)  # a slow network on request, not a way to wait
