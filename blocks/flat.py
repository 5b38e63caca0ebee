"""Flat vectors: tensors laid end to end, and memory aligned as torch aligns it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from blocks.layout import Segment

_ALIGNMENT = 64  # bytes; torch's own allocations start at multiples of it


def flatten(tensors: Iterable[Tensor], size: int, device: torch.device) -> Tensor:
    """Return a new flat float32 vector of ``size`` from tensors in order."""
    flat = torch.empty(size, dtype=torch.float32, device=device)
    start = 0
    for tensor in tensors:
        stop = start + tensor.numel()
        flat[start:stop].copy_(tensor.detach().reshape(-1))
        start = stop
    return flat


def aligned(x: Tensor) -> Tensor:
    """Return ``x``, or a copy where its memory is strided or not at a 64-byte boundary.

    Matrix kernels may take another path, and round otherwise, on other alignments.

    Raises
    ------
    TypeError — if ``x`` is not float32.
    """
    if x.dtype != torch.float32:
        raise TypeError(
            f"Inputs and parameters must be float32; got {x.dtype}. "
            "Scale pixels to [0, 1] as float32 first."
        )
    if x.is_contiguous() and x.data_ptr() % _ALIGNMENT == 0:
        return x
    return torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)


def as_views(
    tensors: Sequence[Tensor],
    segments: Sequence[Segment],
    size: int,
    device: torch.device,
) -> Tensor:
    """Return a new flat vector that the tensors become views of, in order."""
    flat = flatten(tensors, size, device)
    for tensor, segment in zip(tensors, segments, strict=True):
        tensor.data = flat[segment.start : segment.stop].view(segment.shape)
    return flat


def check_flat(name: str, flat: Tensor, size: int) -> None:
    """Check a flat vector's length and dtype.

    Raises
    ------
    ValueError — if it is not (size,) float32.
    """
    if flat.shape != (size,) or flat.dtype != torch.float32:
        raise ValueError(
            f"`{name}` must have shape ({size},) and dtype float32; got "
            f"{tuple(flat.shape)} and {flat.dtype}. Join the blocks of this model."
        )
