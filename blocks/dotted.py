"""User code by name: the one place that resolves ``package.module:name``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from blocks.usercode import calling, secluded


def is_dotted(name: str) -> bool:
    """Return whether a name has the form ``package.module:name``."""
    return ":" in name


def load_callable(name: str, what: str) -> Callable[..., Any]:
    """Return the callable that ``package.module:name`` stands for.

    Importing runs the user's code: only model factories and losses come here. What a
    module draws from the global random generators while it is imported is the same in
    every process.

    Parameters
    ----------
    name : str — importable module, colon, attribute (dots allowed after the colon).
    what : str — the setting that holds the name, for error messages.

    Raises
    ------
    ValueError — if the module cannot be imported, ends the process, changes the
        working folder or torch's defaults, or lacks the attribute, or the attribute is
        not callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or ":" in attribute:
        raise ValueError(
            f'`{what}` must have the form "package.module:name"; got {name!r}. '
            "Write the module, one colon, and the callable's name."
        )
    advice = "Install the package or put its folder on PYTHONPATH, on the workers too."
    with calling(what, name, "name an importable module", advice), secluded(0):
        found: Any = importlib.import_module(module_name)
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
