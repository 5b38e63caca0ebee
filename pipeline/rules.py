"""Changes of a method's arithmetic: which runs they move, and how their ids say so.

Equal ids promise equal bits. When the arithmetic of a method must change, the change
gets a name here, and the runs it concerns get the name into the hash of their id. All
others keep theirs. The run of before is found by the id it had (``former``), and a run
records which rules it followed, so that a replay can say why it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import RunConfig


@dataclass(frozen=True, slots=True)
class Rule:
    """One change of arithmetic."""

    name: str  # enters ids and records: never change it
    why: str  # what the arithmetic does now, as a clause: "only the first … is …"
    concerns: Callable[[RunConfig], bool]  # of resolved settings; may be too many runs


def _pools(config: RunConfig) -> bool:
    """Whether a network that perturbs its activations may hold maximum pools."""
    activity = config.algorithm.kind == "activity-perturbation"
    return activity and config.model.name not in ("mlp", "resnet8")


def _clocked(config: RunConfig) -> bool:
    return config.algorithm.kind == "dbs" and bool(config.algorithm.measured)


# In the order in which they came, so that a beginning of it is what an older version
# had. Add at the end; never change what a rule that was released concerns.
RULES: tuple[Rule, ...] = (
    Rule(
        "first-of-tied-maxima",
        "of equal maxima in the window of a pool the first alone is given the credit",
        _pools,
    ),
    Rule(
        "times-of-their-sizes",
        "measured times are divided by the sizes for which they were taken",
        _clocked,
    ),
)


def rules_of(config: RunConfig) -> tuple[str, ...]:
    """Names of the rules that a run of these settings follows, in order."""
    return tuple(rule.name for rule in RULES if rule.concerns(config))


def former(config: RunConfig) -> list[tuple[str, ...]]:
    """What ``rules_of`` was for these settings in older versions, newest first."""
    now = rules_of(config)
    return [now[:n] for n in reversed(range(len(now)))]


def difference(config: RunConfig, recorded: Iterable[str]) -> str:
    """Say in a clause how a record's rules differ from today's; "" if they do not.

    Parameters
    ----------
    recorded : rules that the record says it followed; none = of before there were any.
    """
    old, now = set(recorded), rules_of(config)
    came = [rule for rule in RULES if rule.name in now and rule.name not in old]
    if came:
        return "; ".join(f"{rule.name}: {rule.why}" for rule in came)
    unknown = sorted(old - set(now))
    return f"unknown here: {', '.join(unknown)}" if unknown else ""
