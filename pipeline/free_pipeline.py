"""The pipeline without a barrier: blocks update when they see losses.

Waves go on while earlier ones are still on their way: a block passes a version's waves
through with the parameters it has at the first of them, which is the step that the
version's record names, and folds the newest record it finds. Versions that it finds too
old are never folded by it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from blocks.algorithm import LossRecord
from pipeline.loss_board import pinned
from pipeline.pipelined import PipelinedWorker
from pipeline.rounds import NodeState
from pipeline.stages import Pass

AHEAD = 4  # versions on their way at a time


@dataclass(frozen=True, slots=True)
class Folding:
    """An update of the own blocks that counts from ``until`` (a clock's seconds) on.

    A block's delay holds up its update and not the waves: these pass meanwhile with
    the parameters that it had.
    """

    version: int
    until: float
    states: dict[int, NodeState]


class FreePipelinedWorker(PipelinedWorker):
    """One worker's side of a piece of which each round is one version's minibatch."""

    def run(self, states: dict[int, NodeState]) -> dict[int, NodeState]:
        """Pass all versions of the piece on; returns the nodes' new states."""
        piece = self.piece
        counts = piece.steps or (piece.first,) * self.context.n_nodes
        self.steps = {node: counts[node] for node in states}
        self.states = dict(states)
        self.going: dict[int, Pass] = {}
        self.folding: Folding | None = None
        self.folded = self.newest = piece.first - 1
        self.last_version = piece.first + piece.n_rounds - 1
        self.record: LossRecord | None = None  # the newest that is known
        self.finite = True
        version = piece.first  # that goes forward next
        while self.folded < self.last_version or self.folding:
            self._look(version)
            if self.folding and time.time() >= self.folding.until:
                self._settle(self.folding)
            elif self.newest > self.folded and not self.folding:
                self._fold()
            elif self._ready(version):
                version += self._advance(version)
        return self.states

    # -- what has arrived --------------------------------------------------------------

    def _look(self, version: int) -> None:
        """Take the records that have arrived; wait if there is nothing else to do."""
        if self.link is None:
            return
        wanted = []
        if self.rank != self.last and self.newest < self.last_version:
            while self.link.there(f"record-{self.newest + 1}"):
                self._note(self.link.take(f"record-{self.newest + 1}"))
            wanted.append(f"record-{self.newest + 1}")
        can_fold = self.newest > self.folded and not self.folding
        if can_fold or self._ready(version):
            return
        if self._may_go(version):
            wanted.append(self._next_wave(version))
        limit = self.piece.timeout_s
        if self.folding:
            limit = self.folding.until - time.time()
        self.link.wait(wanted, limit, may_end=self.folding is not None)

    def _may_go(self, version: int) -> bool:
        return version <= min(self.last_version, self.newest + AHEAD)

    def _ready(self, version: int) -> bool:
        """Whether a wave can go forward: others wait for it, so it comes first."""
        if not self._may_go(version):
            return False
        if self.link is None or self.stages.own[0] == 0:
            return True
        return self.link.there(self._next_wave(version))

    def _next_wave(self, version: int) -> str:
        number = self.going[version].n_forward if version in self.going else 0
        return self._wave(version, number, self.stages.own[0])

    def _note(self, record: LossRecord) -> None:
        self.newest, self.record = record.version, record
        self.finite &= all(map(math.isfinite, record.losses))
        self.outcome.n_done += self.finite

    # -- forward -----------------------------------------------------------------------

    def _advance(self, version: int) -> int:
        """Take a version's next wave forward; 1 when it was the last of it."""
        if version not in self.going:
            steps = dict(self.steps)
            theta = self._theta(self.states)
            self.going[version] = Pass(version, theta, steps=steps)
            if self.rank != self.last:
                assert self.link is not None
                self.link.post([self.last], f"steps-{version}-{self.rank}", steps)
        going = self.going[version]
        self._forward(going)
        if going.n_forward < len(self.stages.waves):
            return 0
        if self.rank == self.last:
            self._note(self._record(going))
        return 1

    def _scored_steps(self, going: Pass) -> tuple[int, ...]:
        steps = dict(going.steps)
        for rank in set(self.stages.owners) - {self.rank}:
            assert self.link is not None
            steps |= self.link.take(f"steps-{going.version}-{rank}")
        return tuple(steps[node] for node in range(self.context.n_nodes))

    def _delay(self, node: int) -> None:
        """Nothing here: see ``Folding``."""

    # -- updates -----------------------------------------------------------------------

    def _fold(self) -> None:
        """Update the own blocks with the newest record on the board."""
        record = pinned(self.board, self.newest, self.record, self.piece.timeout_s)
        going = self.going[record.version]
        sums = self._nothing()
        while going.n_credited < len(self.stages.waves):
            self._credit(going, sums)
        credits = self._credits(self.states, sums)
        start, new = time.time(), {}
        for node, (state, _) in self.states.items():
            step, before = self.steps[node], self.seconds.get(node, 0.0)
            given = (None, (), before, credits[node])
            new[node] = self._step(node, step, record, state, *given)
        until = start + sum(self.context.config.delays.get(n, 0.0) for n in new)
        updates = self.outcome.updates
        updates[-len(new) :] = [
            (node, step, seen, began, max(end, until), name)
            for node, step, seen, began, end, name in updates[-len(new) :]
        ]
        self.folding = Folding(record.version, until, new)
        self._forget(record.version)

    def _settle(self, folding: Folding) -> None:
        """The update is over: waves that start now see the new parameters."""
        self.states = folding.states
        self.steps = {node: step + 1 for node, step in self.steps.items()}
        self.folding = None

    def _forget(self, folded: int) -> None:
        """Drop what is kept of versions up to the one just folded."""
        for version in [v for v in self.going if v <= folded]:
            del self.going[version]
            if self.link is not None and version < folded:
                for wave in self.stages.waves:
                    self.link.drop(f"samples-{version}-{wave.number}")
        self.folded = folded
