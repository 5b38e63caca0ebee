"""What a block of ND-CAO knows, and the parts of its step that need nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from blocks.algorithm import LossRecord
from blocks.descent import Memory, descend
from blocks.window import Window


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A point that this block sent out and whose loss may still arrive."""

    step: int  # first own step that sent it; it stands until the next entry's step
    point: Tensor  # (d,) float32
    probe_std: float  # 0 = the point itself is scored


@dataclass(frozen=True, slots=True, eq=False)
class NDCAOState:
    """What one block knows: its centre, its scored pairs, its points under way.

    Centre, points and window are the parameters themselves, or with smooth candidates
    coordinates z of the parameters base + Sz.
    """

    index: int
    seed: int
    centre: Tensor  # (d,) float32, c
    sent: tuple[Sent, ...]  # oldest first, never empty
    window: Window
    version: int  # newest version folded, −1 = none
    monomials: np.ndarray  # (kept, 3) int64, monomials to be used again
    base: Tensor | None  # (d,) float32, initial parameters if candidates are smooth
    starts: np.ndarray  # (g,) int64, positions of the smooth weight images
    matrices: np.ndarray  # (m, 3) int64, what low-rank probes take for matrices
    memory: Memory  # of the optimiser, if the estimator is "antithetic"


def find_scored(
    state: NDCAOState, record: LossRecord, n_probes: int
) -> tuple[NDCAOState, Sent | None]:
    """Return the state without points that are scored no more, and the one that was.

    ``None``: the block does not hold the scored point any longer.

    Raises
    ------
    ValueError — if the record does not hold ``n_probes`` losses.
    """
    scored = record.steps[state.index]
    known = [i for i, sent in enumerate(state.sent) if sent.step <= scored]
    if not known:
        return replace(state, version=record.version), None
    if len(record.losses) != n_probes:
        raise ValueError(
            f"`record.losses` must hold `probes` = {n_probes} losses; got "
            f"{len(record.losses)} at version {record.version}. "
            "Score K probes a version, K the algorithm's `n_probes`."
        )
    sent = state.sent[known[-1] :]
    return replace(state, sent=sent, version=record.version), sent[0]


def descended(
    state: NDCAOState, slope: Tensor, alpha: float, momentum: float
) -> NDCAOState:
    """Return the state after a step of size ``alpha`` against a slope (d,)."""
    memory, direction = descend(state.memory, slope, momentum)
    centre = state.centre - alpha * direction
    return replace(state, centre=centre, memory=memory)
