"""A network as a chain: links in sequence, cut into segments before each layer.

A link is a module that may hold layers, and the tail behind it: rectifiers and maximum
pools, behind which its noise is added. What only a module's own ``forward`` knows is
one link.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from blocks.activity_layers import trained_layers
from blocks.activity_links import is_plain
from blocks.activity_tails import in_tail


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One module of a chain, and its layers that are perturbed: by name."""

    module: nn.Module
    layers: tuple[tuple[str, nn.Module], ...]
    tail: tuple[nn.Module, ...] = ()  # of a single layer: noise is added behind it

    @property
    def single(self) -> bool:
        """Whether the module is itself such a layer, not one that calls some."""
        return bool(self.layers) and self.layers[0][1] is self.module


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Links in sequence; ``index`` 0 is fed with samples, the others with pairs."""

    index: int
    links: tuple[Link, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained, each once, in the order of the links."""
        found = {
            id(p): p
            for link in self.links
            for p in link.module.parameters()
            if p.requires_grad
        }
        return list(found.values())


def cut(module: nn.Module) -> tuple[Segment, ...]:
    """Cut a chain before each link that has weights.

    A link is a module of a sequence, nested or not; it has weights if it holds a
    trainable array of two or more dimensions. A module whose path only its own
    ``forward`` knows is one link, and may hold many layers.

    Raises
    ------
    ValueError — if parameters belong to a module that cannot be perturbed; named.
    """
    groups: list[list[Link]] = [[]]
    begun = False
    for name, part in _links(module):
        layers = tuple(trained_layers(part, name))
        weighty = any(p.requires_grad and p.dim() >= 2 for p in part.parameters())
        if weighty and begun:
            groups.append([])
        begun = begun or weighty
        last = groups[-1][-1] if groups[-1] else None
        if last is not None and last.single and in_tail(part):
            groups[-1][-1] = replace(last, tail=(*last.tail, part))
        else:
            groups[-1].append(Link(part, layers))
    return tuple(Segment(i, tuple(links)) for i, links in enumerate(groups))


def _links(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order of the pass; only a plain sequence is opened."""
    if not is_plain(module):
        yield name, module
        return
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _links(child, f"{name}.{child_name}" if name else child_name)
