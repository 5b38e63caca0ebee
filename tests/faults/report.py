"""Counts of outcomes, as one table, and the failures in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

OUTCOMES = ("same", "named", "silent", "raw", "hang")
FAILURES = OUTCOMES[2:]
SHOWN = 5  # failures of each row


@dataclass(frozen=True)
class Case:
    """One try: what was damaged, how, who read it, and what came of it."""

    what: str
    kind: str
    reader: str
    outcome: str
    said: str


def table(cases: Iterable[Case]) -> str:
    """Return the counts: a row for each thing, kind of damage and all its readers."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for case in cases:
        counts[case.what, case.kind, case.outcome] += 1
        counts["all", "", case.outcome] += 1
    rows = sorted({(what, kind) for what, kind, _ in counts} - {("all", "")})
    lines = [_line("what", "kind", OUTCOMES)]
    for what, kind in [*rows, ("all", "")]:
        numbers = [str(counts[what, kind, outcome]) for outcome in OUTCOMES]
        lines.append(_line(what, kind, numbers))
    return "\n".join(lines)


def failures(cases: Iterable[Case], shown: int = SHOWN) -> list[str]:
    """Return the failures in words, ``shown`` of each kind before each reader."""
    seen: Counter[tuple[str, ...]] = Counter()
    lines = []
    for case in cases:
        if case.outcome in FAILURES:
            key = (case.what, case.kind, case.reader, case.outcome)
            seen[key] += 1
            if seen[key] <= shown:
                lines.append(f"{' | '.join(key)} | {case.said[:400]}")
    return lines


def _line(what: str, kind: str, numbers: Iterable[str]) -> str:
    return f"{what:<31}{kind:<14}" + "".join(f"{number:>9}" for number in numbers)
