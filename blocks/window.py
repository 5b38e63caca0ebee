"""The window of a block: its last T scored pairs and their Gram matrix."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from blocks.algorithm import HOST

_ALIGN = 16  # float32 values in 64 bytes: every row starts at the same alignment


class _Arena:
    """Memory that the windows of successive states share; rows are only appended."""

    __slots__ = ("buffer", "stop")

    def __init__(self, like: Tensor, capacity: int) -> None:
        stride = -(-like.shape[1] // _ALIGN) * _ALIGN
        self.buffer = torch.empty(
            (capacity, stride), dtype=like.dtype, device=like.device
        )
        self.stop = 0


# rows of a window → (arena that they view, row of the arena at which they end). A
# tensor that came from elsewhere (a pickle, a checkpoint, another worker) is not in
# here, and is copied into fresh, aligned, writable memory by its first append.
_ARENAS = WeakTensorKeyDictionary()
_LOCK = threading.Lock()


def append_rows(rows: Tensor, new: Tensor, limit: int) -> Tensor:
    """Return the last ``limit`` rows of ``rows`` followed by ``new``; inputs unchanged.

    The result is a view into an append-only buffer of 2·limit rows. Memory behind
    ``rows`` is extended in place only when nothing has been appended to it before, so
    an old window stays valid and appending to it twice gives two independent results.
    Cost: a copy of ``new``, and of the whole window every ``limit`` rows.

    Parameters
    ----------
    rows : (n, d) float32 — any tensor; results of this function are extended in place.
    new : (k, d) float32 — k ≤ limit.
    limit : int — T, most rows to hold.

    Returns
    -------
    (min(n + k, limit), d) float32 — a view; its values never change.
    """
    k, d = new.shape
    n_kept = min(rows.shape[0], limit - k)
    with _LOCK:
        arena, end = _ARENAS.get(rows, (None, 0))
        if arena is None or arena.stop != end or end + k > arena.buffer.shape[0]:
            arena, end = _Arena(new, 2 * limit), n_kept
            arena.buffer[:n_kept, :d] = rows[rows.shape[0] - n_kept :]
        arena.stop = end + k
        arena.buffer[end : end + k, :d] = new
        view: Tensor = arena.buffer[end - n_kept : end + k, :d]
        _ARENAS[view] = (arena, end + k)
    return view


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Scored pairs of one block, oldest first; every method returns a new window.

    Rows are displacements from an anchor inside the window, which is moved to the
    newest row every T rows: float32 products of raw parameters would be off by more
    than the ridge. The losses of different scoring subsets are not comparable: each
    subset has a free intercept of its own (see ``groups``).
    """

    anchor: Tensor  # (d,) float32, parameters
    rows: Tensor  # (n, d) float32, scored parameters minus the anchor
    losses: Tensor = field(metadata=HOST)  # (n,) float64 on the host, J
    # (n,) int64 on the host, draw of the scoring subset behind each J
    subsets: Tensor = field(metadata=HOST)
    gram: Tensor = field(metadata=HOST)  # (n, n) float64 on the host, G = rows · rows'
    n_since_anchor: int  # rows appended since the anchor was last moved

    @classmethod
    def empty(cls, params: Tensor) -> Window:
        """Window without pairs, anchored at ``params`` (d,)."""
        return cls(
            anchor=params.detach().to(torch.float32, copy=True),
            rows=torch.empty((0, params.shape[0]), device=params.device),
            losses=torch.empty(0, dtype=torch.float64),
            subsets=torch.empty(0, dtype=torch.int64),
            gram=torch.empty((0, 0), dtype=torch.float64),
            n_since_anchor=0,
        )

    def __reduce__(self) -> tuple[type[Window], tuple[object, ...]]:
        """Pickle the live rows only, not the buffer that they view."""
        fields = (self.losses, self.subsets, self.gram, self.n_since_anchor)
        return Window, (self.anchor, self.rows.clone(), *fields)

    @property
    def n_pairs(self) -> int:
        """n, pairs held."""
        return int(self.rows.shape[0])

    def append(
        self, points: Tensor, losses: Sequence[float], subset: int, limit: int
    ) -> Window:
        """Window after k scored pairs, the oldest ones beyond ``limit`` dropped.

        Parameters
        ----------
        points : (k, d) float32 — parameters as scored, 1 ≤ k ≤ limit.
        losses : k floats — finite J of each point.
        subset : int — draw of the scoring subset.
        limit : int — T.
        """
        k = points.shape[0]
        # Two roundings at most: the difference, and the anchor's own when it moved.
        new = points - self.anchor
        rows = append_rows(self.rows, new, limit)
        n_old = rows.shape[0] - k
        products = (rows @ rows[n_old:].T).to("cpu", torch.float64)
        gram = torch.empty((n_old + k, n_old + k), dtype=torch.float64)
        dropped = self.n_pairs - n_old
        gram[:n_old, :n_old] = self.gram[dropped:, dropped:]
        gram[:, n_old:] = products
        gram[n_old:, :] = products.T
        gram[n_old:, n_old:] = _symmetric(products[n_old:])
        values = torch.tensor(losses, dtype=torch.float64)
        window = Window(
            anchor=self.anchor,
            rows=rows,
            losses=torch.cat([self.losses[dropped:], values]),
            subsets=torch.cat([self.subsets[dropped:], torch.full((k,), subset)]),
            gram=gram,
            n_since_anchor=self.n_since_anchor + k,
        )
        return window._reanchored(limit) if window.n_since_anchor >= limit else window

    def _reanchored(self, limit: int) -> Window:
        """Return the same pairs as displacements from the newest; G computed anew."""
        shift = self.rows[-1].clone()
        rows = append_rows(self.rows[:0], self.rows - shift, limit)
        return Window(
            anchor=self.anchor + shift,
            rows=rows,
            losses=self.losses,
            subsets=self.subsets,
            gram=_symmetric((rows @ rows.T).to("cpu", torch.float64)),
            n_since_anchor=0,
        )

    def gram_about(self, centre: Tensor) -> Tensor:
        """(n, n) float64 Gram matrix of the pairs minus ``centre`` (d,)."""
        offset = centre - self.anchor
        square = torch.dot(offset, offset)
        found = torch.cat([self.rows @ offset, square[None]]).to("cpu", torch.float64)
        shift, square = found[:-1], found[-1]
        return self.gram - shift[:, None] - shift[None, :] + square

    def groups(self) -> Tensor:
        """(n, q) float64: a column per scoring subset, 1 where a pair belongs to it."""
        draws = self.subsets.unique()
        members: Tensor = self.subsets[:, None] == draws[None, :]
        return members.to(torch.float64)

    def centred(self, values: Tensor) -> Tensor:
        """(n, …) float64 ``values`` minus the mean over each pair's own subset."""
        groups = self.groups()
        means = groups.T @ values / groups.sum(0).view(-1, *[1] * (values.ndim - 1))
        return values - groups @ means


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)
