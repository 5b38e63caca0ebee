"""Random signs: every bit of some bytes is looked up as one number."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def signs_of(octets: np.ndarray, scale: float, device: torch.device) -> Tensor:
    """Return eight numbers a byte, most significant bit first: 0 → −scale, 1 → +scale.

    To other devices than the CPU the bytes travel, and not the numbers.

    Parameters
    ----------
    octets : (n,) uint8.
    scale : float — magnitude of the numbers.
    device : where they are wanted.

    Returns
    -------
    (n, 8) float32, new, in torch's own memory.
    """
    values = torch.empty((len(octets), 8), device=device)
    if device.type == "cpu":
        np.take(_table(scale), octets, axis=0, out=values.numpy(), mode="clip")
    else:
        indices = torch.from_numpy(octets).to(device).to(torch.int32)
        torch.index_select(_table_on(scale, device), 0, indices, out=values)
    return values


@lru_cache(maxsize=64)
def _table(scale: float) -> np.ndarray:
    """(256, 8) float32: the signs that a byte stands for, times the scale."""
    octets = np.arange(256, dtype=np.uint8)[:, None]
    return np.where(np.unpackbits(octets, axis=1), scale, -scale).astype(np.float32)


@lru_cache(maxsize=64)
def _table_on(scale: float, device: torch.device) -> Tensor:
    return torch.from_numpy(_table(scale)).to(device)
