"""Groupings: a partition's string turned into named groups of flat indices."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from blocks.layout import Layout
from blocks.units import Layer, find_layers

Groups = list[tuple[str, np.ndarray]]

_FORMS = (
    '"all", "by_layer", "by_unit:N", "by_size:N", "random:N", "random:N:SEED", "custom"'
)
_N_NUMBERS = {  # fewest and most numbers after the kind
    "all": (0, 0),
    "by_layer": (0, 0),
    "by_unit": (1, 1),
    "by_size": (1, 1),
    "random": (1, 2),
    "custom": (0, 0),
}


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A parsed partition: its kind, its number of blocks and its seed."""

    kind: str
    n_blocks: int = 0  # 0 where the kind decides
    seed: int = 0


def parse_spec(spec: str) -> BlockSpec:
    """Return the meaning of a partition string, without a module.

    Raises
    ------
    ValueError — if the string has none of the allowed forms; the message lists them.
    """
    kind, *numbers = spec.split(":")
    low, high = _N_NUMBERS.get(kind, (1, 0))
    well_formed = low <= len(numbers) <= high and all(
        re.fullmatch("[0-9]{1,18}", number) for number in numbers
    )
    if not well_formed or (numbers and int(numbers[0]) < 1):
        raise ValueError(
            f"`blocks` must be one of {_FORMS}, with N at least 1; got {spec!r}. "
            "Choose a form and write its numbers out."
        )
    return BlockSpec(kind, *map(int, numbers))


def group(
    spec: BlockSpec, module: nn.Module, layout: Layout, patterns: Sequence[str] = ()
) -> Groups:
    """Return (name, sorted flat indices) of each block; ``partition`` documents them.

    Raises
    ------
    ValueError — if there are fewer units or parameters than blocks, no weight layer to
        take units from, or custom patterns that do not match each parameter once.
    """
    if spec.kind == "custom":
        return _custom(patterns, layout)
    builders: dict[str, Callable[[BlockSpec, nn.Module, Layout], Groups]] = {
        "all": _all,
        "by_layer": _by_layer,
        "by_unit": _by_unit,
        "by_size": _by_size,
        "random": _random,
    }
    return builders[spec.kind](spec, module, layout)


def _all(spec: BlockSpec, module: nn.Module, layout: Layout) -> Groups:
    return [("all", np.arange(layout.n_params))]


def _by_layer(spec: BlockSpec, module: nn.Module, layout: Layout) -> Groups:
    layers = find_layers(module, layout)
    if layers:
        return [(layer.name, layer.indices) for layer in layers]
    # No weight arrays at all: one block a parameter.
    return [(s.name, np.arange(s.start, s.stop)) for s in layout.segments if s.size]


def _by_unit(spec: BlockSpec, module: nn.Module, layout: Layout) -> Groups:
    layers = find_layers(module, layout)
    if not layers:
        raise ValueError(
            f"`blocks` = by_unit:{spec.n_blocks} must have a weight layer to take "
            f"units from; got none in {type(module).__name__}. "
            'Use "by_layer" or "by_size:N".'
        )
    hidden, last = layers[:-1], layers[-1]
    n_units, n_groups = sum(layer.n_units for layer in hidden), spec.n_blocks - 1
    if n_groups > n_units or (n_groups == 0 and n_units):
        raise ValueError(
            "`blocks` = by_unit:N must have N − 1 groups of at least one hidden unit "
            f"(the last layer is a block of its own); got N = {spec.n_blocks} for "
            f"{n_units} hidden units. Choose N from {min(2, n_units + 1)} to "
            f"{n_units + 1}."
        )
    bounds = [n_units * i // n_groups for i in range(n_groups + 1)] if n_groups else []
    groups = [
        _units_between(hidden, low, high) for low, high in itertools.pairwise(bounds)
    ]
    return [*groups, (last.name, last.indices)]


def _units_between(layers: list[Layer], low: int, high: int) -> tuple[str, np.ndarray]:
    """Group of hidden units low ≤ u < high, counted through all layers in order."""
    names, indices, offset = [], [], 0
    for layer in layers:
        first = max(low - offset, 0)
        stop = min(high - offset, layer.n_units)
        if first < stop:
            names.append(f"{layer.name}[{first}:{stop}]")
            indices.append(layer.of_units(first, stop))
        offset += layer.n_units
    return "+".join(names), np.sort(np.concatenate(indices))


def _by_size(spec: BlockSpec, module: nn.Module, layout: Layout) -> Groups:
    return _deal("by_size", spec.n_blocks, np.arange(layout.n_params))


def _random(spec: BlockSpec, module: nn.Module, layout: Layout) -> Groups:
    rng = np.random.Generator(np.random.Philox(spec.seed))
    return _deal("random", spec.n_blocks, rng.permutation(layout.n_params))


def _deal(kind: str, n_blocks: int, order: np.ndarray) -> Groups:
    """Runs of equal size ± 1 of an order of all indices, each sorted."""
    if n_blocks > order.size:
        raise ValueError(
            f"`blocks` = {kind}:N must have at least one parameter a block; got N = "
            f"{n_blocks} for {order.size} parameters. Choose a smaller N."
        )
    runs = np.array_split(order, n_blocks)
    return [(f"{kind}[{i}]", np.sort(run)) for i, run in enumerate(runs)]


def _custom(patterns: Sequence[str], layout: Layout) -> Groups:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as err:
            raise ValueError(
                "`custom_blocks` must be regular expressions; got "
                f"{pattern!r} ({err}). Mend the pattern."
            ) from err
    matches = {
        s.name: [i for i, regex in enumerate(compiled) if regex.fullmatch(s.name)]
        for s in layout.segments
    }
    _check_matches(matches, patterns)
    groups = []
    for i, pattern in enumerate(patterns):
        owned = [s for s in layout.segments if i in matches[s.name]]
        indices = [np.arange(s.start, s.stop) for s in owned]
        if not sum(s.size for s in owned):
            raise ValueError(
                "`custom_blocks` must each match some parameter's whole name; got "
                f"{pattern!r}, which matches none of {_quoted(layout.names)}. "
                "Mend or drop the pattern."
            )
        groups.append((pattern, np.concatenate(indices)))
    return groups


def _check_matches(matches: dict[str, list[int]], patterns: Sequence[str]) -> None:
    missed = [name for name, found in matches.items() if not found]
    if missed:
        raise ValueError(
            "`custom_blocks` must cover every parameter; got no pattern that matches "
            f"the whole name of {_quoted(missed)}. Add a pattern."
        )
    for name, found in matches.items():
        if len(found) > 1:
            twice = _quoted([patterns[i] for i in found])
            raise ValueError(
                f"`custom_blocks` must not overlap; got `{name}` matched by {twice}. "
                "Make the patterns exclusive."
            )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
