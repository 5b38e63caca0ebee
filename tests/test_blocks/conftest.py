"""Fixtures: small problems, a harness that plays an algorithm on one, exact bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from blocks.rehearsal import Session, make_problem


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of nested dataclasses, tuples and mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    else:
        yield path, value


def bits(value: Any) -> list[tuple[str, Any]]:
    """Every leaf with its exact bits: equal lists mean equal values, NaN included."""
    found: list[tuple[str, Any]] = []
    for path, leaf in leaves(value):
        if isinstance(leaf, Tensor):
            content = leaf.detach().contiguous().numpy().tobytes()
            found.append((path, (str(leaf.dtype), tuple(leaf.shape), content)))
        elif isinstance(leaf, np.ndarray):
            found.append((path, (str(leaf.dtype), leaf.shape, leaf.tobytes())))
        else:
            found.append((path, repr(leaf)))
    return found


@pytest.fixture(scope="session")
def problem():
    """Return the function that makes a problem: quadratic, logistic or mlp."""
    return make_problem


@pytest.fixture(scope="session")
def session():
    """Return the function that starts an algorithm on a problem."""
    return Session.start


@pytest.fixture(scope="session")
def tensors():
    """Return the function that lists (path, tensor) of anything nested."""
    return lambda value: [(p, x) for p, x in leaves(value) if isinstance(x, Tensor)]


@pytest.fixture(scope="session")
def bits_of():
    """Return the function that takes anything nested to its exact bits."""
    return bits
