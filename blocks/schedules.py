"""Step-size schedules: how the scale α of the candidates falls over a node's steps."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["robbins-monro", "geometric", "linear", "constant"]

NOMINAL_STEPS = 6_000  # length of a schedule when no number of steps is planned


def step_size_at(
    schedule: Schedule,
    step: int,
    n_steps: int,
    start: float,
    final: float,
    power: float = 1.0,
) -> float:
    """Return α_k, the scale of the candidates at step k.

    With f = min(k / n_steps, 1): ``robbins-monro`` is start·(1 + k)^−power, which
    meets Σα = ∞ and Σα² < ∞ for ½ < power ≤ 1; ``geometric`` is
    start·(final/start)^f; ``linear`` is start + f·(final − start); ``constant`` is
    start. The last three do not meet the convergence conditions of the method's family
    and are used all the same.

    Parameters
    ----------
    schedule : one of the four names.
    step : int — k ≥ 0, the node's own step.
    n_steps : int — planned steps; 0 (open-ended) counts as ``NOMINAL_STEPS``.
    start, final : float — α at the first step and after the last one, > 0.
    power : float — exponent of ``robbins-monro``; not used by the others.

    Returns
    -------
    float — α_k > 0, in units of the parameters.
    """
    fraction = min(step / (n_steps or NOMINAL_STEPS), 1.0)
    match schedule:
        case "robbins-monro":
            return start * float((1.0 + step) ** -power)
        case "geometric":
            return start * float((final / start) ** fraction)
        case "linear":
            return start + fraction * (final - start)
        case "constant":
            return start
    raise ValueError(
        "`schedule` must be robbins-monro, geometric, linear or constant; "
        f"got {schedule!r}. Choose one."
    )
