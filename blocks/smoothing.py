"""Smooth candidates: exploration that varies slowly over the pixels of an input image.

Weights that read neighbouring pixels mostly matter through their local mean, so noise
that is independent from pixel to pixel is mostly wasted. A block then works in
coordinates z with x = base + Sz, S a Gaussian blur of every weight image; candidates
that are N(0, α²I) in z are N(0, α²SS') in the parameters, of variance α² each.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def image_starts(indices: np.ndarray, images: tuple[int, int, int]) -> np.ndarray:
    """Return where a block holds whole weight images, (g,) int64 positions.

    Parameters
    ----------
    indices : (d,) int64 — the block's sorted flat indices.
    images : (n, height, width) — the first n·height·width parameters of θ are images.
    """
    n, height, width = images
    size = height * width
    first = np.arange(n, dtype=np.int64) * size
    at = np.searchsorted(indices, first)
    ends = at + size - 1
    inside = ends < len(indices)
    at, first, ends = at[inside], first[inside], ends[inside]
    whole = (indices[at] == first) & (indices[ends] == first + size - 1)
    starts: np.ndarray = at[whole]
    return starts


def smooth(
    values: Tensor, starts: np.ndarray, shape: tuple[int, int], std: float
) -> Tensor:
    """Return Sz: every image of ``values`` blurred, the rest unchanged; a new tensor.

    Rows of the blur have unit norm, so white noise keeps unit variance everywhere.

    Parameters
    ----------
    values : (d,) float32 — z.
    starts : (g,) int64 — positions of the images, see ``image_starts``.
    shape : (height, width) of an image.
    std : float — σ > 0 of the blur, pixels.
    """
    height, width = shape
    result = values.clone()
    left = _blur(height, std).to(values.device)
    right = _blur(width, std).to(values.device)
    for start in starts.tolist():
        part = slice(start, start + height * width)
        image = values[part].clone().view(height, width)
        result[part] = (left @ image @ right.T).reshape(-1)
    return result


@lru_cache(maxsize=32)
def _blur(size: int, std: float) -> Tensor:
    """(size, size) float32 Gaussian blur with rows of unit norm."""
    at = np.arange(size, dtype=np.float64)
    weights = np.exp(-((at[:, None] - at[None, :]) ** 2) / (2.0 * std**2))
    weights /= np.sqrt((weights**2).sum(1, keepdims=True))
    return torch.tensor(weights, dtype=torch.float32)
