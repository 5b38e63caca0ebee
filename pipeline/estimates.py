"""A figure that says how sure it is, by which method, and from how many."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["MIN_PAIRS", "Estimate", "LeftOut"]

#: Fewer pairs (or runs) than this show nothing about a difference.
MIN_PAIRS = 3


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run, or a seed, that a figure could not use."""

    who: str
    why: str

    def __str__(self) -> str:
        return f"{self.who}: {self.why}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure with its interval.

    ``low`` and ``high`` are NaN where nothing is claimed: below three pairs, or where
    the data leave the figure open. They are infinite (0 and ∞ of a ratio) where the
    interval has no end on that side.
    """

    what: str  # with the budget at which it holds
    estimate: float
    low: float
    high: float
    method: str
    n: int
    unit: str = "pairs"  # what n counts: pairs or runs
    level: float = 0.95
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def claims(self) -> bool:
        """Whether there is an interval to speak of."""
        return self.n >= MIN_PAIRS and not math.isnan(self.low + self.high)

    def excludes(self, value: float) -> bool | None:
        """Whether the interval leaves out a value; None where nothing is claimed."""
        if not self.claims:
            return None
        return not self.low <= value <= self.high

    def __str__(self) -> str:
        count = f"n = {self.n} {self.unit}"
        if self.n < MIN_PAIRS:
            return f"{self.what}: no claim, {count} (it takes {MIN_PAIRS})"
        if not self.claims:
            return f"{self.what}: no claim, {count} ({self.method})"
        figures = " ".join(
            (_text(self.estimate), f"[{_text(self.low)}, {_text(self.high)}]")
        )
        return f"{self.what}: {figures}, {count}, {self.level:.0%}, {self.method}"


def _text(value: float) -> str:
    if math.isnan(value):
        return "open"
    return f"{value:.4g}" if math.isfinite(value) else "∞" if value > 0 else "−∞"
