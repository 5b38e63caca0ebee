"""Rules for the names of classes, whoever gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.sources.raw import MAX_CLASSES

MAX_NAME = 200  # letters


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raise ``ValueError`` unless names can be shown and told apart."""
    if not 0 < len(names) <= MAX_CLASSES:
        raise ValueError(
            f"`class_names` must be 1…{MAX_CLASSES}; got {len(names)} at {where}. "
            "Join or leave out classes."
        )
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            raise ValueError(
                f"`class_names` must be 1…{MAX_NAME} letters that can be shown; got "
                f"{name[:MAX_NAME]!r} at {where}. Rename the class."
            )
    name, n = Counter(names).most_common(1)[0]
    if n > 1:
        raise ValueError(
            f"`class_names` must differ; got {name!r} {n} times at {where}. Rename "
            "one of them."
        )
