"""Activity perturbation as a pipeline: each worker keeps the layers of its own blocks.

A minibatch is cut into waves (the batches of its shards). A wave goes forward through
the workers, layer by layer; each keeps what its own layers saw. The last one's losses
go to all, and every layer works out its own estimate: there is no backward pass, so no
worker waits for the ones above it but for their losses. Waves are added in the order in
which the replica form adds its batches: the same bits.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blocks.activity import ActivityModel
from blocks.algorithm import LossRecord, n_bytes
from pipeline.loss_board import pinned
from pipeline.pack import host
from pipeline.rounds import NodeState, Worker
from pipeline.scoring import Credits
from pipeline.stages import Estimates, Pass, Stages, Wave


class PipelinedWorker(Worker):
    """One worker's side of a piece whose waves pass from worker to worker."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert self.context.activity is not None
        self.activity: ActivityModel = self.context.activity
        owners = {n: r for r, s in enumerate(self.piece.shares) for n in s.nodes}
        self.stages = Stages.of(self.context, owners, self.rank)
        self.last = self.stages.owners[-1]  # rank that sees the outputs
        blocks = self.context.blocks
        self.places = {n: self._at(blocks[n].indices) for n in self.share.nodes}
        self.spans = {
            s: self._at(self.activity.segment_indices(s)) for s in self.stages.own
        }

    def _score(
        self, k: int, states: dict[int, NodeState]
    ) -> tuple[LossRecord, Credits]:
        going = Pass(k, self._theta(states))
        sums = self._nothing()
        n_waves = len(self.stages.waves)
        while going.n_credited < n_waves:
            if going.n_forward < n_waves and self._ahead(going):
                self._forward(going)
            else:
                self._credit(going, sums)
        credits = self._credits(states, sums)
        known = self._record(going)
        return pinned(self.board, k, known, self.piece.timeout_s), credits

    def _theta(self, states: dict[int, NodeState]) -> Tensor:
        """(P,) the own blocks' values; what the others hold is not needed here."""
        theta = self.context.initial.clone()
        for node, (_, message) in states.items():
            theta[self.places[node]] = message.point
        return theta

    def _at(self, indices: np.ndarray) -> Tensor:
        """Places in θ, on the device."""
        return torch.tensor(indices, device=self.context.device)

    def _nothing(self) -> dict[int, Estimates]:
        """By own segment: no estimates yet."""
        device = self.context.device
        return {s: Estimates.nothing(len(at), device) for s, at in self.spans.items()}

    # -- forward ---------------------------------------------------------------------

    def _ahead(self, going: Pass) -> bool:
        """Whether the next wave goes forward first; else an estimate is due.

        What is there to be passed on comes first: others wait for it.
        """
        if self.link is None or self.stages.own[0] == 0:
            return True
        wave = self._wave(going.version, going.n_forward, self.stages.own[0])
        if going.n_credited in going.losses:
            return self.link.there(wave)
        wanted = [wave, self._samples(going, going.n_credited)]
        self.link.wait(wanted, self.piece.timeout_s, may_end=False)
        return self.link.there(wave)

    def _samples(self, going: Pass, wave: int) -> str:
        return f"samples-{going.version}-{wave}"

    def _wave(self, version: int, wave: int, segment: int) -> str:
        return f"wave-{version}-{wave}-{segment}"

    def _forward(self, going: Pass) -> None:
        """Take one wave through the own segments, and pass it on."""
        wave = self.stages.waves[going.n_forward]
        context = self.context
        key = wave.key(context.config.seed, going.version)
        outputs: tuple[Tensor, ...] | None = None
        for segment in self.stages.own:
            x = self._input(going, wave, segment, outputs)
            busy = time.time()
            outputs, kept = self.activity.segment_forward(
                segment, going.theta, x, key, context.buffers
            )
            going.kept[wave.number, segment] = kept
            self.outcome.busy_s += time.time() - busy
            outputs = self._pass_on(going, wave, segment, outputs)
        going.n_forward += 1

    def _input(
        self,
        going: Pass,
        wave: Wave,
        segment: int,
        outputs: tuple[Tensor, ...] | None,
    ) -> Any:
        if segment == 0:
            return self._batch(going.version, wave)[0]
        if outputs is not None:
            return outputs
        assert self.link is not None
        arrays = self.link.take(self._wave(going.version, wave.number, segment))
        return tuple(self._tensor(array) for array in arrays)

    def _pass_on(
        self, going: Pass, wave: Wave, segment: int, outputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        """Hand outputs to the next segment; the last one's become losses."""
        owners = self.stages.owners
        if segment + 1 < len(owners):
            if self.stages.crosses(segment):
                self.outcome.counters.bytes_moved += n_bytes(*outputs)
            if owners[segment + 1] == self.rank:
                return outputs
            assert self.link is not None
            name = self._wave(going.version, wave.number, segment + 1)
            arrays = [part.cpu().numpy() for part in outputs]
            self.link.post([owners[segment + 1]], name, arrays)
            return None
        targets = self._batch(going.version, wave)[1]
        losses = self.activity.output_losses(
            outputs, targets, self.context.loss_function
        )
        going.losses[wave.number] = losses
        others = [rank for rank in set(owners) if rank != self.rank]
        if others:
            assert self.link is not None
            self.link.post(others, self._samples(going, wave.number), host(losses))
        return None

    def _batch(self, version: int, wave: Wave) -> tuple[Tensor, Tensor]:
        context = self.context
        batches = context.data.batches("loss", [wave.shard], context.subset(version))
        return list(batches)[wave.batch]

    def _tensor(self, array: np.ndarray) -> Tensor:
        """A copy in torch's own memory: the same alignment in every process."""
        copy = torch.empty(array.shape)
        copy.numpy()[...] = array
        return copy.to(self.context.device)

    # -- credit ----------------------------------------------------------------------

    def _credit(self, going: Pass, sums: dict[int, Estimates]) -> None:
        """Add one wave's estimate, once its losses are known."""
        wave = self.stages.waves[going.n_credited]
        if wave.number not in going.losses:
            assert self.link is not None
            posted = self.link.take(self._samples(going, wave.number))
            going.losses[wave.number] = self._tensor(posted)
        busy = time.time()
        losses = going.losses[wave.number]
        for segment in self.stages.own:
            kept = going.kept.pop((wave.number, segment))
            part = self.activity.segment_estimate(segment, kept, losses)
            sums[segment].add(wave, part)
        self.outcome.busy_s += time.time() - busy
        going.n_credited += 1

    def _credits(
        self, states: dict[int, NodeState], sums: dict[int, Estimates]
    ) -> Credits:
        """Mean estimate of every own block."""
        flat = torch.zeros_like(self.context.initial)
        for segment, found in sums.items():
            found.close()
            mean = found.total / self.context.data.n_loss
            flat[self.spans[segment]] = mean
        return {node: flat[self.places[node]] for node in states}

    def _record(self, going: Pass) -> LossRecord:
        """The version's record: from the last worker, which publishes it."""
        if self.rank != self.last:
            assert self.link is not None
            record: LossRecord = self.link.take(f"record-{going.version}")
            return record
        n_rows = self.context.algorithm.n_probes
        sums = {s: np.zeros(n_rows) for s in range(self.context.config.n_shards)}
        for wave in self.stages.waves:
            losses = going.losses[wave.number]
            sums[wave.shard] += losses.double().sum(1).cpu().numpy()
        return self._publish(
            going.version, sums, going.start, self._scored_steps(going)
        )

    def _scored_steps(self, going: Pass) -> tuple[int, ...]:
        """Step of every node that the version's waves have seen."""
        return (going.version,) * self.context.n_nodes
