"""Layers and units of a module: which flat indices belong to which output channel."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from blocks.layout import Layout, Segment

IntArray = np.ndarray


@dataclass(slots=True)
class Layer:
    """A module with a weight array, and the parameters that go with it.

    A unit is an output channel: a row of the first array of two or more dimensions (a
    column, by groups, of a transposed convolution). ``parts`` pairs flat indices with
    their unit; unit −1 marks what belongs to the layer as a whole.
    """

    name: str
    n_units: int
    parts: list[tuple[IntArray, IntArray]] = field(default_factory=list)

    @property
    def indices(self) -> IntArray:
        """Sorted flat indices of the whole layer."""
        return np.sort(np.concatenate([indices for indices, _ in self.parts]))

    def of_units(self, first: int, last: int) -> IntArray:
        """Sorted flat indices of first ≤ unit < last; the first takes the rest too."""
        low = -1 if first == 0 else first
        chosen = [i[(u >= low) & (u < last)] for i, u in self.parts]
        return np.sort(np.concatenate(chosen))

    def add(self, segment: Segment, units: IntArray | None) -> None:
        """Attach a parameter, by unit or (``None``) to the layer as a whole."""
        indices = np.arange(segment.start, segment.stop)
        if units is None:
            units = np.full(segment.size, -1)
        self.parts.append((indices, units))


def find_layers(module: nn.Module, layout: Layout) -> list[Layer]:
    """Return the weight layers of a module in the order they are registered.

    A weight layer is a module that directly owns a trainable array of two or more
    dimensions. Other parameters (normalisation scales and shifts, learned activations)
    join the nearest weight layer registered before them that has as many units, channel
    by channel; else the nearest one before them as a whole (the first layer, where none
    precedes).

    Parameters
    ----------
    module : any module.
    layout : its ``Layout``; says which parameters count, and where they lie.

    Returns
    -------
    list of Layer — disjoint, together covering θ; empty if there is no such array.
    """
    layers: list[Layer] = []
    early: list[Segment] = []
    for owner, segments in _by_owner(module, layout).items():
        if any(len(segment.shape) >= 2 for segment in segments):
            layers.append(_weight_layer(owner, module.get_submodule(owner), segments))
            continue
        for segment in segments:
            if layers:
                _join_layer(layers, segment)
            else:
                early.append(segment)
    if layers:
        for segment in early:
            layers[0].add(segment, None)
    return layers


def _by_owner(module: nn.Module, layout: Layout) -> dict[str, list[Segment]]:
    """Segments grouped by the module that owns them (first name of a shared one)."""
    owners: dict[str, list[Segment]] = {}
    for segment in layout.segments:
        if segment.size:
            owners.setdefault(segment.name.rpartition(".")[0], []).append(segment)
    return owners


def _weight_layer(name: str, module: nn.Module, segments: list[Segment]) -> Layer:
    weight = next(segment for segment in segments if len(segment.shape) >= 2)
    if isinstance(module, _ConvTransposeNd):
        layer = Layer(name or type(module).__name__, module.out_channels)
    else:
        layer = Layer(name or type(module).__name__, weight.shape[0])
    for segment in segments:
        if isinstance(module, _ConvTransposeNd) and len(segment.shape) >= 2:
            layer.add(segment, _transposed_units(module, segment))
        elif segment.shape and segment.shape[0] == layer.n_units:
            layer.add(segment, _row_units(segment))
        else:
            layer.add(segment, None)
    return layer


def _join_layer(layers: list[Layer], segment: Segment) -> None:
    for layer in reversed(layers):
        if segment.shape == (layer.n_units,):
            layer.add(segment, _row_units(segment))
            return
    layers[-1].add(segment, None)


def _row_units(segment: Segment) -> IntArray:
    n_units = segment.shape[0]
    return np.repeat(np.arange(n_units), segment.size // n_units)


def _transposed_units(module: _ConvTransposeNd, segment: Segment) -> IntArray:
    """Units of a transposed convolution's weight (in, out/groups, *kernel)."""
    n_in, per_group = segment.shape[:2]
    group = np.arange(n_in) // (n_in // module.groups)
    units = group[:, None] * per_group + np.arange(per_group)
    return np.repeat(units.reshape(-1), segment.size // (n_in * per_group))
