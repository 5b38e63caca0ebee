"""Low-rank probes: a weight array is perturbed by a few outer products of vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from blocks.layout import Layout
from blocks.probes import Dense, ProbeKind, directions

NO_MATRICES = np.empty((0, 3), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Directions whose part in a matrix is Σ_r a_r b_r' / √R, and dense elsewhere.

    With independent entries of unit variance in a and b, all entries of a direction
    have unit variance and none is correlated with another, at any R.
    """

    size: int  # d
    matrices: np.ndarray  # (m, 3) int64: position in the block, rows, columns
    left: tuple[Tensor, ...]  # one a matrix: (n_pairs, R, rows), a
    right: tuple[Tensor, ...]  # one a matrix: (n_pairs, R, columns), b
    rest: Tensor  # (n_pairs, d − entries of the matrices), by position
    rest_positions: np.ndarray = field(init=False, repr=False)  # sorted, int64

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "rest_positions", positions_outside(self.matrices, self.size)
        )

    @property
    def n_pairs(self) -> int:
        """Antithetic pairs."""
        return len(self.rest)

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self.rest.dtype

    @property
    def device(self) -> torch.device:
        """Where the entries live."""
        return self.rest.device

    @property
    def scale(self) -> float:
        """1/√R."""
        return 1.0 / math.sqrt(self.left[0].shape[1]) if self.left else 1.0

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        """(stop − start, d) the directions of some pairs, written out; a new tensor."""
        rest = self.rest[start:stop]
        whole = torch.empty(
            (len(rest), self.size), dtype=rest.dtype, device=rest.device
        )
        whole[:, _on(self.rest_positions, rest)] = rest
        for (at, rows, columns), a, b in self._parts():
            outer = torch.bmm(a[start:stop].mT, b[start:stop]) * self.scale
            whole[:, at : at + rows * columns] = outer.flatten(1)
        return whole

    def combine(self, weights: Tensor) -> Tensor:
        """(d,) Σ_k w_k n_k for weights (n_pairs,): one product a matrix."""
        rest = self.rest
        whole = torch.empty(self.size, dtype=rest.dtype, device=rest.device)
        whole[_on(self.rest_positions, rest)] = rest.T @ weights
        weighted = (weights * self.scale)[:, None, None]
        for (at, rows, columns), a, b in self._parts():
            into = whole[at : at + rows * columns].view(rows, columns)
            torch.mm((a * weighted).flatten(0, 1).T, b.flatten(0, 1), out=into)
        return whole

    def _parts(self) -> list[tuple[tuple[int, int, int], Tensor, Tensor]]:
        places = [tuple(place) for place in self.matrices.tolist()]
        return list(zip(places, self.left, self.right, strict=True))


Directions = Dense | LowRank


def find_matrices(indices: np.ndarray, layout: Layout, rank: int) -> np.ndarray:
    """Return the matrices of a block: whole rows of weight arrays, one after another.

    A weight array of two dimensions or more counts as (first, all others). Rows that a
    block owns in part, single rows, and matrices for which ``rank`` outer products are
    no fewer numbers than their entries are left to be perturbed entry by entry.

    Parameters
    ----------
    indices : (d,) int64 — sorted flat indices of the block.
    layout : places and shapes of all parameters.
    rank : int — R, outer products a matrix; 0: no matrix at all.

    Returns
    -------
    (m, 3) int64 — position of its first entry in the block, rows, columns; by position.
    """
    found = []
    for segment in layout.segments if rank else ():
        if len(segment.shape) < 2 or not segment.size:
            continue
        rows = segment.shape[0]
        columns = segment.size // rows
        first, last = np.searchsorted(indices, [segment.start, segment.stop])
        owned = (indices[first:last] - segment.start) // columns
        counts = np.bincount(owned, minlength=rows)
        whole = np.concatenate([[False], counts == columns, [False]])
        starts = np.flatnonzero(~whole[:-1] & whole[1:])
        stops = np.flatnonzero(whole[:-1] & ~whole[1:])
        before = np.concatenate([[0], np.cumsum(counts)])
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            height = stop - start
            if rank * (height + columns) < height * columns:
                found.append((first + before[start], height, columns))
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def positions_outside(matrices: np.ndarray, size: int) -> np.ndarray:
    """(n,) int64 sorted positions of a block of ``size`` that are in no matrix."""
    outside = np.ones(size, dtype=bool)
    for at, rows, columns in matrices.tolist():
        outside[at : at + rows * columns] = False
    return np.flatnonzero(outside)


def draw_directions(
    seed: int,
    node: int,
    step: int,
    n_pairs: int,
    size: int,
    kind: ProbeKind = "sign",
    rank: int = 0,
    matrices: np.ndarray = NO_MATRICES,
    device: torch.device | str = "cpu",
) -> Directions:
    """Return a node's directions at one of its steps, dense or of low rank.

    Like ``directions``, a function of the arguments alone. All numbers of a pair are
    drawn in one row: a and b of each matrix in turn, then the entries in no matrix.

    Parameters
    ----------
    seed, node, step, n_pairs, size, kind, device : see ``probes.directions``.
    rank : int — R; 0: dense directions.
    matrices : (m, 3) int64 — see ``find_matrices``; none: dense directions.

    Raises
    ------
    ValueError — as ``probes.directions`` does, or if ``rank`` is negative.
    """
    check_rank(rank)
    if rank == 0 or not len(matrices):
        return Dense(directions(seed, node, step, n_pairs, size, kind, device))
    shapes: list[list[int]] = matrices[:, 1:].tolist()
    n_rest = size - sum(rows * columns for rows, columns in shapes)
    widths = [rank * side for shape in shapes for side in shape]
    width = sum(widths) + n_rest
    drawn = directions(seed, node, step, n_pairs, width, kind, device)
    *factors, rest = drawn.split([*widths, n_rest], dim=1)
    cut = [f.reshape(n_pairs, rank, -1) for f in factors]
    return LowRank(size, matrices, tuple(cut[0::2]), tuple(cut[1::2]), rest)


def check_rank(rank: int) -> None:
    """Check a ``rank`` setting.

    Raises
    ------
    ValueError — if it is negative.
    """
    if rank < 0:
        raise ValueError(
            f"`rank` must be 0 (dense) or more; got {rank}. Correct the setting."
        )


def _on(positions: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(positions).to(like.device)
