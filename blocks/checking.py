"""What the checks of an algorithm share: exact bits, readable failures, a session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from blocks.algorithm import Information
from blocks.rehearsal import Moment, Session, make_problem

LONG = 16  # rounds in which nodes that talk at all are expected to


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


def difference(first: Any, second: Any) -> str:
    """Where two values have other bits; "" where they have the same."""
    one, other = bits(first), bits(second)
    pairs = zip(one, other, strict=False)
    differing = [a[0] or "value" for a, b in pairs if a != b]
    return ", ".join(differing) or ("" if len(one) == len(other) else "fields")


def must(ok: bool, message: str) -> None:
    """Raise ``AssertionError`` with ``message`` unless ``ok``, under ``-O`` too."""
    if not ok:
        raise AssertionError(message)


def made(algorithm: Any) -> Any:
    """The algorithm, or what its class or another factory makes."""
    return algorithm() if callable(algorithm) else algorithm


def start(algorithm: Any, problem: str, n_nodes: int | None = None) -> Session:
    """Begin to play an algorithm on a problem."""
    return Session.start(made(algorithm), make_problem(problem), n_nodes=n_nodes)


def telling_moments(played: Session) -> list[Moment]:
    """Steps worth a look: the sixth ones, and the first ones with a full inbox."""
    played.advance(5)
    found = played.moments()
    if not played.algorithm.information & Information.NEIGHBOURS:
        return found
    newest = found
    while played.step < LONG and not any(m.observation.inbox for m in newest):
        newest = played.advance(1).moments()
    return found if newest is found else [*found, *newest]
