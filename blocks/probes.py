"""Joint probes: seeded antithetic perturbations, rebuilt wherever they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import step_rng
from blocks.signs import signs_of

ProbeKind = Literal["sign", "gaussian"]

_PURPOSE = 1  # the stream of `step_rng` that is kept for probes


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Directions with independent entries: ``rows`` (n_pairs, d), unit variance."""

    rows: Tensor

    @property
    def n_pairs(self) -> int:
        """Antithetic pairs."""
        return len(self.rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        """Where the entries live."""
        return self.rows.device

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        """(stop − start, d) the directions themselves, of some pairs; not a copy."""
        return self.rows[start:stop]

    def combine(self, weights: Tensor) -> Tensor:
        """(d,) Σ_k w_k n_k for weights (n_pairs,)."""
        return self.rows.T @ weights


def directions(
    seed: int,
    node: int,
    step: int,
    n_pairs: int,
    size: int,
    kind: ProbeKind = "sign",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the unit-variance directions of a node's probes at one of its steps.

    Directions are a function of the arguments alone and never travel: the scorer and
    the node that owns the block call this with the same numbers. They are drawn on the
    host, so that CPU and GPU runs share them.

    Parameters
    ----------
    seed : int — run seed.
    node, step : int — node index and the node's own step that announced the point.
    n_pairs : int — antithetic pairs, K = 2·n_pairs probes.
    size : int — d, parameters of the node's block.
    kind : "sign" (±1 with equal odds) or "gaussian" (standard normal).
    device : where the result lives.

    Returns
    -------
    (n_pairs, d) float32 — independent entries of mean 0 and variance 1.

    Raises
    ------
    ValueError — if ``n_pairs`` or ``size`` is not positive, or ``kind`` is unknown.
    """
    if n_pairs < 1 or size < 1:
        raise ValueError(
            f"`n_pairs` and `size` must be at least 1; got {n_pairs} and {size}. "
            "Score the point itself where no probes are wanted."
        )
    rng = step_rng(seed, node, step, purpose=_PURPOSE)
    # Torch's own memory: the same alignment in every process.
    values = torch.empty((n_pairs, size), device=device)
    if kind == "sign":
        return _signs(rng, values)
    if kind == "gaussian":
        drawn = rng.standard_normal((n_pairs, size), dtype=np.float32)
        return values.copy_(torch.from_numpy(drawn))
    allowed = ", ".join(f'"{name}"' for name in get_args(ProbeKind))
    raise ValueError(f"`kind` must be one of {allowed}; got {kind!r}. Choose one.")


def probe_points(point: Tensor, std: float, dirs: Tensor) -> Tensor:
    """Return the antithetic probes around a point, in the order +0, −0, +1, −1, ….

    Row 2i is ``point + std·dirs[i]`` and row 2i + 1 is ``point − std·dirs[i]``, so the
    losses of a record are read as ``losses[0::2]`` and ``losses[1::2]``.

    Parameters
    ----------
    point : (d,) float32 — centre of the probes.
    std : float — standard deviation of a probe's coordinates, same unit as ``point``.
    dirs : (n_pairs, d) float32 — unit-variance directions on the device of ``point``.

    Returns
    -------
    (2·n_pairs, d) float32 — new tensor; inputs unchanged.

    Raises
    ------
    ValueError — if the shapes of ``point`` and ``dirs`` do not match.
    """
    if point.ndim != 1 or dirs.ndim != 2 or dirs.shape[1] != point.shape[0]:
        raise ValueError(
            "`dirs` must have shape (n_pairs, d) for a `point` of shape (d,); "
            f"got {tuple(dirs.shape)} and {tuple(point.shape)}. "
            "Draw them with `directions`."
        )
    offsets = dirs * std
    points = torch.empty(
        (2 * dirs.shape[0], point.shape[0]), dtype=point.dtype, device=point.device
    )
    torch.add(point, offsets, out=points[0::2])
    torch.sub(point, offsets, out=points[1::2])
    return points


def _signs(rng: np.random.Generator, out: Tensor) -> Tensor:
    """Fill ``out`` (n, d) with ±1: one random bit an entry, rows start at a byte."""
    n_rows, size = out.shape
    row_bytes = -(-size // 8)
    raw = np.frombuffer(rng.bytes(n_rows * row_bytes), dtype=np.uint8)
    octets = raw.reshape(n_rows, row_bytes)
    at_once = max(_ENTRIES_AT_ONCE // size, 1)
    for start in range(0, n_rows, at_once):
        rows = octets[start : start + at_once]
        values = signs_of(rows.reshape(-1).copy(), 1.0, out.device)
        out[start : start + at_once] = values.view(len(rows), -1)[:, :size]
    return out


_ENTRIES_AT_ONCE = 1 << 20  # 4 MiB of numbers beside the result
