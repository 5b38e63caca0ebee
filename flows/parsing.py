"""Values of command-line flags: budgets, durations, delays, layer sizes."""

from __future__ import annotations

import math
import re

BUDGET_KEYS = ("steps", "loss_values", "samples", "gradient_evals", "bytes", "seconds")
TARGET_KEYS = ("val_accuracy", "val_loss", "train_loss")
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
MOST_DIGITS = 18
_DURATION = re.compile(r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*$", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``50ms``, ``1.5s``, ``2min`` or plain ``0.05``.

    Raises
    ------
    ValueError — if ``text`` is not a non-negative number with a known unit.
    """
    match = _DURATION.match(text)
    unit = match.group(2).lower() or "s" if match else ""
    if match is None or unit not in _UNITS_S:
        raise ValueError(
            "`duration` must be a number and a unit (us, ms, s, min or h); "
            f"got {text!r}. Write for example 50ms or 1.5s."
        )
    return float(match.group(1)) * _UNITS_S[unit]


def parse_budget(text: str) -> dict[str, int | float]:
    """Limits of a run: ``steps=500`` or several, ``loss_values=6000,seconds=60``.

    Returns
    -------
    dict — one entry a limit; ``seconds`` is a float (durations such as ``2min`` too),
    all others are positive integers (``6_000`` and ``6e3`` are accepted).

    Raises
    ------
    ValueError — on an unknown or repeated key, or a value that is not positive.
    """
    budget: dict[str, int | float] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in BUDGET_KEYS:
            raise ValueError(
                f"`--budget` must be KEY=VALUE with a key of {', '.join(BUDGET_KEYS)}; "
                f"got {part.strip()!r}. Write for example steps=500."
            )
        if key in budget:
            raise ValueError(
                f"`--budget` must name each limit once; got {key!r} twice. Remove one."
            )
        budget[key] = parse_duration(value) if key == "seconds" else _count(key, value)
        if not budget[key] > 0:
            raise ValueError(
                f"`--budget {key}` must be positive; got {value.strip()}. Raise it."
            )
    return budget


def _count(key: str, text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number):
        raise ValueError(
            f"`--budget {key}` must be a whole number; got {text.strip()!r}. "
            f"Write for example {key}=500."
        )
    return int(number)


def _is_whole(text: str) -> bool:
    """Whether a text is a whole number of at most eighteen digits."""
    return text.strip().isdecimal() and len(text.strip()) <= MOST_DIGITS


def parse_delays(texts: list[str]) -> dict[int, float]:
    """Extra seconds at every update of a block, from ``2=50ms`` (several: repeat it).

    Raises
    ------
    ValueError — if one is not BLOCK=DURATION with a block index ≥ 0, or is repeated.
    """
    delays: dict[int, float] = {}
    for text in texts:
        block, equals, duration = text.partition("=")
        if not equals or not _is_whole(block):
            raise ValueError(
                "`--delay` must be BLOCK=DURATION with a block index from 0; "
                f"got {text!r}. Write for example --delay 2=50ms."
            )
        index = int(block)
        if index in delays:
            raise ValueError(
                f"`--delay` must name each block once; got block {index} twice. "
                "Remove one."
            )
        delays[index] = parse_duration(duration)
    return delays


def parse_sizes(text: str) -> tuple[int, ...]:
    """Layer sizes from ``32`` or ``64,32``; ``none`` or nothing is no hidden layer.

    Raises
    ------
    ValueError — if a size is not a positive whole number.
    """
    if text.strip().lower() in {"", "none", "0"}:
        return ()
    sizes = []
    for part in text.split(","):
        if not _is_whole(part) or int(part) == 0:
            raise ValueError(
                "`--hidden` must be positive whole numbers separated by commas; "
                f"got {text!r}. Write for example --hidden 64,32."
            )
        sizes.append(int(part))
    return tuple(sizes)


def parse_target(text: str) -> dict[str, float]:
    """Metric and value of ``val_accuracy=0.9``.

    Raises
    ------
    ValueError — on another metric (test data are no target), or no positive number.
    """
    key, _, value = text.partition("=")
    key = key.strip().replace("-", "_")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if key not in TARGET_KEYS or not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"`--target` must be KEY=NUMBER with a key of {', '.join(TARGET_KEYS)}; "
            f"got {text!r}. Write for example val_accuracy=0.9."
        )
    return {key: number}
