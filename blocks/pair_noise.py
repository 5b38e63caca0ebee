"""Joint perturbations by parameter: of a weight array as factors or written out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blocks.joint_probes import JointProbes
from blocks.layout import Segment
from blocks.probes import Dense


@dataclass(frozen=True, slots=True, eq=False)
class WeightNoise:
    """What n_pairs probes add to a weight array (o, i): left·right, or std·dense."""

    left: Tensor  # (n_pairs, o, q), σ in it
    right: Tensor  # (n_pairs, q, i)
    dense: Tensor | None  # (n_pairs, o, i), then q = 0
    std: float  # σ of ``dense``

    def to(self, dtype: torch.dtype) -> WeightNoise:
        """The same, rounded."""
        dense = None if self.dense is None else self.dense.to(dtype)
        return WeightNoise(self.left.to(dtype), self.right.to(dtype), dense, self.std)


@dataclass(frozen=True, slots=True, eq=False)
class _Outer:
    """Some rows of a weight array, perturbed by outer products."""

    place: int  # flat index of the first entry
    left: Tensor  # (n_pairs, R, rows), σ/√R in it
    right: Tensor  # (n_pairs, R, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """All blocks' perturbations, found by their places in θ."""

    flat: np.ndarray  # (n,) int64, sorted: flat indices of ``entries``
    entries: Tensor  # (n_pairs, n), perturbed one by one, in units of ``std``
    std: float
    outers: tuple[_Outer, ...]

    def of_entries(self, segment: Segment) -> Tensor:
        """(n_pairs, size) what is added to a vector, such as a bias."""
        return self._of(segment)[1] * self.std

    def of_weight(self, segment: Segment) -> WeightNoise:
        """What is added to a weight array, seen as (first dimension, all others)."""
        rows = segment.shape[0]
        columns = segment.size // rows
        places, entries = self._of(segment)
        n_pairs = len(entries)
        if len(places) == segment.size:
            return _written_out(entries.view(n_pairs, rows, columns), self.std)
        lefts, rights = [], []
        for outer in self.outers:
            if segment.start <= outer.place < segment.stop:
                first = (outer.place - segment.start) // columns
                count, height = outer.left.shape[1:]
                left = entries.new_zeros((n_pairs, rows, count))
                left[:, first : first + height] = outer.left.mT
                lefts.append(left)
                rights.append(outer.right)
        if len(places):  # whole rows, each an outer product of its own
            own = torch.from_numpy(places[::columns] // columns).to(entries.device)
            left = entries.new_zeros((rows, len(own)))
            left[own, torch.arange(len(own), device=own.device)] = self.std
            lefts.append(left.expand(n_pairs, -1, -1))
            rights.append(entries.reshape(n_pairs, -1, columns))
        left, right = torch.cat(lefts, 2), torch.cat(rights, 1)
        if right.shape[1] * (rows + columns) < rows * columns:
            return WeightNoise(left, right, None, 0.0)
        return _written_out(torch.bmm(left, right), 1.0)

    def _of(self, segment: Segment) -> tuple[np.ndarray, Tensor]:
        """Places in a segment, sorted, and perturbations of its single entries."""
        low, high = np.searchsorted(self.flat, [segment.start, segment.stop])
        return self.flat[low:high] - segment.start, self.entries[:, low:high]


def _written_out(dense: Tensor, std: float) -> WeightNoise:
    n_pairs, rows, columns = dense.shape
    left, right = (n_pairs, rows, 0), (n_pairs, 0, columns)
    return WeightNoise(dense.new_empty(left), dense.new_empty(right), dense, std)


def place_noise(probes: JointProbes) -> Noise:
    """Return the perturbations of all blocks by their places in θ."""
    flats, entries, outers = [], [], []
    alone = len(probes.blocks) == 1
    for block, std, dirs in zip(
        probes.blocks, probes.stds, probes.directions, strict=True
    ):
        if isinstance(dirs, Dense):
            values, positions = dirs.rows, np.arange(block.size)
        else:
            values, positions = dirs.rest, dirs.rest_positions
            places = block.indices[dirs.matrices[:, 0]].tolist()
            for place, left, right in zip(places, dirs.left, dirs.right, strict=True):
                outers.append(_Outer(place, left * (std * dirs.scale), right))
        flats.append(block.indices[positions])
        entries.append(values if alone else values * std)
    flat = np.concatenate(flats)
    joined = entries[0] if alone else torch.cat(entries, dim=1)
    if not (np.diff(flat) > 0).all():
        order = np.argsort(flat)
        joined = joined[:, torch.from_numpy(order).to(joined.device)]
        flat = flat[order]
    return Noise(flat, joined, probes.stds[0] if alone else 1.0, tuple(outers))
