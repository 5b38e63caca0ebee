"""Partitions: the flat parameter vector of any module, split into disjoint blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from blocks.groupings import BlockSpec, group, parse_spec
from blocks.layout import Layout, Segment

__all__ = [
    "Block",
    "BlockSpec",
    "Layout",
    "Segment",
    "join",
    "parse_spec",
    "partition",
    "split",
    "validate_blocks",
]

_MAX_RUNS = 256  # up to here copying slices is faster than indexing


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A disjoint slice of θ: the parameters that one node owns."""

    index: int
    name: str
    indices: np.ndarray  # (d,) int64, sorted flat indices, read-only
    _runs: tuple[tuple[int, int], ...] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        indices = np.sort(np.asarray(self.indices, dtype=np.int64))  # always a copy
        indices.flags.writeable = False
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "_runs", _runs_of(indices))

    @property
    def size(self) -> int:
        """d, parameters in the block."""
        return int(self.indices.size)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Block)
            and (self.index, self.name) == (other.index, other.name)
            and np.array_equal(self.indices, other.indices)
        )

    def __hash__(self) -> int:
        return hash((self.index, self.name, self.size))

    def __reduce__(self) -> tuple[type[Block], tuple[int, str, np.ndarray]]:
        return Block, (self.index, self.name, self.indices)


def partition(
    spec: str, module: nn.Module, patterns: Sequence[str] = ()
) -> tuple[Block, ...]:
    """Return the blocks of a module's flat parameter vector.

    ``all`` is one block. ``by_layer`` is one block a weight layer, normalisation
    parameters with their layer (see ``blocks.units.find_layers``). ``by_unit:N`` is N
    blocks: the last weight layer is one; the hidden units (output channels, each with
    its incoming weights, bias and normalisation) of all other layers, in order, form
    N − 1 groups of equal size ± 1 unit. ``by_size:N`` is N contiguous runs of equal
    size ± 1. ``random:N:SEED`` deals a seeded permutation into N such runs. ``custom``
    takes one regular expression a block; every parameter's whole name must match
    exactly one.

    Buffers are in no block: see ``blocks.layout.Layout``.

    Parameters
    ----------
    spec : str — one of the forms above; SEED defaults to 0.
    module : any module; only names, shapes and ``requires_grad`` are used.
    patterns : regular expressions of ``custom``, in block order; else empty.

    Returns
    -------
    tuple of Block — disjoint, none empty, together covering θ; deterministic.

    Raises
    ------
    ValueError — if the spec has no allowed form, asks for more blocks than there are
        units or parameters, or custom patterns do not cover, overlap or match nothing.
    """
    parsed = parse_spec(spec)
    if bool(patterns) != (parsed.kind == "custom"):
        raise ValueError(
            "`custom_blocks` must hold one pattern a block with `blocks` = "
            f'"custom", and be empty otherwise; got {len(patterns)} with {spec!r}. '
            "Set both or neither."
        )
    layout = Layout.from_module(module)
    named = group(parsed, module, layout, patterns)
    blocks = tuple(Block(i, name, ids) for i, (name, ids) in enumerate(named))
    validate_blocks(blocks, layout)
    return blocks


def validate_blocks(blocks: Sequence[Block], layout: Layout) -> None:
    """Check that blocks are not empty, do not overlap and cover θ.

    Raises
    ------
    ValueError — naming the parameters that are missed, owned twice, or out of range.
    """
    counts = np.zeros(layout.n_params, dtype=np.int64)
    for block in blocks:
        ids = block.indices
        if not ids.size or ids[0] < 0 or ids[-1] >= layout.n_params:
            raise ValueError(
                f"`blocks` must each own indices in 0 ≤ i < {layout.n_params}; got "
                f"block {block.index} ({block.name!r}) with {_range(ids)}. "
                "Drop it or mend its indices."
            )
        np.add.at(counts, ids, 1)
    for wrong, rule, advice in (
        (counts == 0, "cover every parameter", "Add them to a block"),
        (counts > 1, "not overlap", "Leave each to one block"),
    ):
        if wrong.any():
            names = ", ".join(f"`{n}`" for n in layout.owners(np.flatnonzero(wrong)))
            raise ValueError(
                f"`blocks` must {rule}; got {int(wrong.sum())} parameter(s) against it "
                f"in {names}. {advice}."
            )


def split(params: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
    """Return each block's parameters as new tensors of shape (…, d).

    Parameters
    ----------
    params : (…, P) — one vector, or a stack of them (probes).
    blocks : disjoint blocks; need not cover.
    """
    return [_take(params, block) for block in blocks]


def join(parts: Sequence[Tensor], blocks: Sequence[Block], n_params: int) -> Tensor:
    """Return the flat vector that blocks' parameters make up; ``split`` undone.

    Parameters
    ----------
    parts : one (…, d) tensor a block, in the order of ``blocks``.
    blocks : blocks that cover θ.
    n_params : int — P.

    Returns
    -------
    (…, P) — new tensor on the device of the parts.

    Raises
    ------
    ValueError — if parts do not fit the blocks, or blocks are not P indices in total.
    """
    sizes = [part.shape[-1] for part in parts]
    expected = [block.size for block in blocks]
    if sizes != expected or sum(sizes) != n_params:
        raise ValueError(
            f"`parts` must have the blocks' sizes {expected}, {n_params} in total; got "
            f"{sizes}. Pass one part a block, in the order of `blocks`."
        )
    first = parts[0]
    whole = torch.empty(
        (*first.shape[:-1], n_params), dtype=first.dtype, device=first.device
    )
    for part, block in zip(parts, blocks, strict=True):
        if block._runs is None:
            whole[..., _index(block, whole)] = part
            continue
        at = 0
        for start, stop in block._runs:
            whole[..., start:stop] = part[..., at : at + stop - start]
            at += stop - start
    return whole


def _take(params: Tensor, block: Block) -> Tensor:
    if block._runs is None:
        return params[..., _index(block, params)]
    return torch.cat([params[..., start:stop] for start, stop in block._runs], dim=-1)


def _index(block: Block, like: Tensor) -> Tensor:
    return torch.tensor(block.indices, dtype=torch.int64, device=like.device)


def _runs_of(indices: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """Contiguous runs (start, stop) of sorted indices; None if there are many."""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    if breaks.size >= _MAX_RUNS or not indices.size:
        return None
    starts = indices[np.concatenate([[0], breaks + 1])]
    stops = indices[np.concatenate([breaks, [-1]])] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


def _range(indices: np.ndarray) -> str:
    return f"{indices[0]} to {indices[-1]}" if indices.size else "no index"
