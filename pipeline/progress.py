"""What a run tells whoever watches it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a run."""

    phase: str  # "starting", "training", "evaluating", "saving", "done"
    round: int = 0  # steps of every block so far (the mean, if asynchronous)
    n_rounds: int = 0  # planned; 0 = open-ended
    version: int = -1  # newest published global loss
    loss: float = math.nan
    test_accuracy: float | None = None
    val_accuracy: float | None = None
    versions_per_s: float = 0.0
    mean_staleness: float = math.nan  # versions
    n_workers: int = 0
    elapsed_s: float = 0.0
    dashboard: str | None = None


Watcher = Callable[[Progress], None]
