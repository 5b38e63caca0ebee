"""Noise on activations: seeded, drawn on the host, the same in every process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import step_rng
from blocks.signs import signs_of

NoiseKind = Literal["sign", "gaussian"]
NoiseKey = tuple[int, int, int]  # run seed, version, shard · 2^16 + batch
NoiseSource = Callable[[int, tuple[int, ...]], Tensor]  # (place, shape) → noise

_PURPOSE = 14  # the stream of `step_rng` that is kept for activations


@dataclass(frozen=True, slots=True)
class ActivityNoise:
    """Settings of the noise that is added to every layer's outputs.

    Parameters
    ----------
    std : float — σ > 0, in units of the outputs; a layer with n noisy units is given
        σ·n^¼ (``noise_scale``).
    draws : int — D ≥ 1 antithetic pairs a sample.
    kind : "sign" (±σ with equal odds) or "gaussian".

    Raises
    ------
    ValueError — if a setting is out of range.
    """

    std: float
    draws: int
    kind: NoiseKind

    def __post_init__(self) -> None:
        kinds = " or ".join(f'"{name}"' for name in get_args(NoiseKind))
        for name, value, rule, kept in (
            ("std", self.std, "positive and finite", 0 < self.std < math.inf),
            ("draws", self.draws, "at least 1", self.draws >= 1),
            ("kind", self.kind, kinds, self.kind in get_args(NoiseKind)),
        ):
            if not kept:
                raise ValueError(
                    f"`{name}` of the noise must be {rule}; got {value!r}. "
                    "Correct the setting."
                )

    def source(
        self, key: NoiseKey, part: int = 0, device: torch.device | str = "cpu"
    ) -> NoiseSource:
        """Return the noise of one part of a batch, by place and shape.

        Every (key, part, place) has a stream of its own: who draws first, or whether
        the other places are drawn at all, changes nothing. Signs are the same on every
        device exactly; Gaussian numbers are too, as all are drawn on the host.

        Parameters
        ----------
        key : (run seed, version, shard · 2^16 + batch), each ≥ 0; the last < 2^32.
        part : int — which part of the batch, from 0.
        device : where the noise is wanted.

        Returns
        -------
        Callable (place, shape) → float32 tensor of that shape, standard deviation σ,
        new at each call. ``place`` is the number of the layer's call, < 2^64.
        """
        seed, version, batch = key
        draw = _signs if self.kind == "sign" else _normals

        def noise(place: int, shape: tuple[int, ...]) -> Tensor:
            rng = step_rng(seed, batch, version, _PURPOSE)
            # Words 1 and 2 of Philox's counter are free: 2^64 numbers for each place.
            rng.bit_generator.advance(place << 64 | part << 128)  # type: ignore[attr-defined]
            return draw(rng, shape, self.std, torch.device(device))

        return noise


def noise_scale(shape: Sequence[int]) -> float:
    """n^¼ of a layer with n noisy units: what multiplies its noise.

    A layer's estimate has a variance of about n·V/σ_l², V = Σ σ_k² g_k² over layers of
    what noise changes the loss by; with gradients g of equal length, σ_l ∝ n^¼ makes
    the sum over layers smallest.

    Parameters
    ----------
    shape : (D, samples, …) of the noise.
    """
    return float(math.prod(shape[2:]) ** 0.25)


def noise_of(algorithm: object) -> ActivityNoise | None:
    """Return the noise that an algorithm puts on activations; None for most."""
    found: ActivityNoise | None = getattr(algorithm, "noise_settings", None)
    return found


def _signs(
    rng: np.random.Generator, shape: tuple[int, ...], std: float, device: torch.device
) -> Tensor:
    """±σ, one random bit an entry."""
    size = math.prod(shape)
    n_bytes = -(-size // 8)
    raw = rng.bit_generator.random_raw(-(-n_bytes // 8))
    octets = raw.astype("<u8", copy=False).view(np.uint8)[:n_bytes]
    return signs_of(octets, std, device).view(-1)[:size].view(shape)


def _normals(
    rng: np.random.Generator, shape: tuple[int, ...], std: float, device: torch.device
) -> Tensor:
    values = rng.standard_normal(shape, dtype=np.float32)
    # A copy into torch's own memory: the same alignment in every process.
    return torch.empty(shape, device=device).copy_(torch.from_numpy(values)).mul_(std)
