"""User code by name: the one place that resolves ``package.module:name``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def is_dotted(name: str) -> bool:
    """Return whether a name has the form ``package.module:name``."""
    return ":" in name


def load_callable(name: str, what: str) -> Callable[..., Any]:
    """Return the callable that ``package.module:name`` stands for.

    Importing runs the user's code: only model factories and losses come here.

    Parameters
    ----------
    name : str — importable module, colon, attribute (dots allowed after the colon).
    what : str — the setting that holds the name, for error messages.

    Raises
    ------
    ValueError — if the module cannot be imported, or lacks the attribute, or the
        attribute is not callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or ":" in attribute:
        raise ValueError(
            f'`{what}` must have the form "package.module:name"; got {name!r}. '
            "Write the module, one colon, and the callable's name."
        )
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as err:
        raise ValueError(
            f"`{what}` must name an importable module; got {name!r} "
            f"({type(err).__name__}: {err}). Install the package or put its folder on "
            "PYTHONPATH, on the workers too."
        ) from err
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"`{what}` must name something that exists; got {name!r}: "
                f"`{module_name}` has no `{attribute}`. Check the spelling."
            )
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(
            f"`{what}` must name a callable; got {name!r} of type "
            f"{type(found).__name__}. Point it at a function or a class."
        )
    checked: Callable[..., Any] = found
    return checked
