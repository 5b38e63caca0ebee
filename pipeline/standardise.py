"""What is subtracted from images, and what divides them, before a network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

_ROWS = 4096  # images summed at a time


@dataclass(frozen=True, slots=True, eq=False)
class Standardisation:
    """Inputs are (pixels / pixel_scale − mean) / std; both come from train only."""

    mean: np.ndarray  # (C, H, W) float32, or (C, 1, 1), on the scale of [0, 1] pixels
    std: np.ndarray  # (C,) float32


def standardisation(
    images: Tensor,
    channel_mean: tuple[float, ...],
    channel_std: tuple[float, ...],
    pixel_scale: float,
    centring: Literal["pixel", "channel"],
) -> Standardisation:
    """Return the standardisation of a training set.

    Parameters
    ----------
    images : (n, C, H, W) uint8 or float32 — the training split as stored.
    channel_mean, channel_std : (C,) — of the store, on the scale of [0, 1] pixels.
    pixel_scale : float — what stored pixels are divided by.
    centring : "pixel" subtracts the mean training image, "channel" one number each.
    """
    std = np.array(channel_std, dtype=np.float32)
    if centring == "channel":
        mean = np.array(channel_mean, dtype=np.float32).reshape(-1, 1, 1)
        return Standardisation(mean, std)
    exact = torch.float64 if images.is_floating_point() else torch.int64
    total = torch.zeros(images.shape[1:], dtype=exact, device=images.device)
    for part in images.split(_ROWS):
        total += part.sum(0, dtype=exact)
    mean = (total.double() / (len(images) * pixel_scale)).float().cpu().numpy()
    return Standardisation(mean, std)


class Standardise(nn.Module):
    """Maps pixels on the scale [0, 1], (n, C, H, W) float32, to a network's inputs."""

    mean: Tensor
    std: Tensor

    def __init__(self, standard: Standardisation) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(standard.mean.copy()))
        self.register_buffer(
            "std", torch.from_numpy(standard.std.copy())[:, None, None]
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (pixels − mean) / std."""
        standardised: Tensor = (pixels - self.mean) / self.std
        return standardised
