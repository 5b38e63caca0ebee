"""The precision of forward passes whose losses alone are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def dtype_of(precision: Precision) -> torch.dtype:
    """The type in which products are taken."""
    found: torch.dtype = getattr(torch, precision)
    return found


@contextmanager
def products_in(dtype: torch.dtype, device_type: str) -> Iterator[None]:
    """Take products and convolutions in ``dtype``; what needs range stays float32.

    Weights are rounded anew at each use: parameters are written over in place.
    """
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device_type, dtype, cache_enabled=False):
        yield
