"""What follows a layer at once: rectifiers and maximum pools, and credit through them.

They drop values: a rectifier those below zero, a pool all but the largest of a window.
Noise on a value that is dropped cannot change the loss, and credit for it is nothing
but variance. A layer therefore adds its noise behind them, where values that got
through are, and hands the credit back to the places they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blocks.activity_links import apply, hooked, pool_window

_TRANSPARENT = (nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """A maximum pool without overlap: what it took, (n, …, H, W), and gave."""

    x: Tensor
    y: Tensor
    size: tuple[int, int]

    def back(self, delta: Tensor) -> Tensor:
        """(n, …, H, W): every number of (n, …, h, w) at the largest of its window.

        Of several that are largest the first by rows has it alone, as in torch's own
        gradient: flat background ties exactly.
        """
        high, wide = (s * n for s, n in zip(self.size, self.y.shape[-2:], strict=True))
        whole = (high, wide) == tuple(self.x.shape[-2:])
        found = (delta.new_empty if whole else delta.new_zeros)(self.x.shape)
        *places, last = (
            (..., slice(row, high, self.size[0]), slice(column, wide, self.size[1]))
            for row in range(self.size[0])
            for column in range(self.size[1])
        )
        rest = delta.clone()
        for at in places:
            # Zeros and ones as floats: several times faster than a bool mask.
            taken = self.x[at].clone().eq_(self.y).mul_(rest)
            found[at] = taken
            rest.sub_(taken)  # 0 from here on, wherever it was taken
        found[last] = rest
        return found


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A flattening of numbers of this shape, without their first dimension."""

    shape: torch.Size

    def back(self, delta: Tensor) -> Tensor:
        """(n, …) in the shape that was flattened."""
        return delta.view(len(delta), *self.shape)


@dataclass(frozen=True, slots=True)
class Tail:
    """What a layer's outputs went through before noise was added to them."""

    steps: tuple[Pooled | Reshaped, ...] = ()
    rectified: bool = False

    def back(self, delta: Tensor) -> Tensor:
        """Hand credit for (n, …) numbers behind the tail back to the outputs."""
        for step in reversed(self.steps):
            delta = step.back(delta)
        return delta


def in_tail(link: nn.Module) -> bool:
    """Whether noise may be added behind a module, and credit handed back through it."""
    if type(link) not in _TRANSPARENT or hooked(link):
        return False  # a subclass may do something else
    if isinstance(link, nn.MaxPool2d):
        return pool_window(link) is not None
    if isinstance(link, nn.Flatten):
        return link.start_dim == 1 and link.end_dim == -1
    return True


def passed(
    tail: Sequence[nn.Module], x: Tensor, credited: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tail]:
    """Send a layer's outputs through its tail; returns what comes out, and the tail.

    Parameters
    ----------
    tail : modules for which ``in_tail`` holds, in evaluation mode.
    x : (n, …) the layer's outputs; may be overwritten.
    credited : picks the rows whose places the credit finds its way back to.
    """
    steps: list[Pooled | Reshaped] = []
    own = True
    for link in tail:
        y = apply(link, x, own)
        if isinstance(link, nn.MaxPool2d):
            size = pool_window(link)
            assert size is not None
            steps.append(Pooled(credited(x), credited(y), size))
            own = False
        elif isinstance(link, nn.Flatten):
            steps.append(Reshaped(x.shape[1:]))
        x = y
    rectified = any(isinstance(link, nn.ReLU) for link in tail)
    return x, Tail(tuple(steps), rectified)
