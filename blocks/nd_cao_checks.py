"""Which settings of ND-CAO go together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from blocks.low_rank import check_rank

if TYPE_CHECKING:
    from blocks.nd_cao import NDCAO

MIN_PAIRS = 3  # fewer scored pairs than this: a random move


def check_settings(config: NDCAO) -> None:
    """Check all settings.

    Raises
    ------
    ValueError — for the first setting that is out of its range.
    """
    positive = ("ridge", "step_size", "step_size_final", "schedule_power", "probe_std")
    for name in positive:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise _error(name, "be positive and finite", value, "Correct the setting.")
    least = {"candidates": 2, "n_monomials": 1, "schedule_steps": 0, "probes": 1}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            value = getattr(config, name)
            raise _error(name, f"be at least {bound}", value, "Raise it.")
    if config.probes > 1 and config.probes % 2:
        rule = "be 1, or even (antithetic pairs)"
        raise _error("probes", rule, config.probes, "Add one.")
    if config.estimator == "antithetic":
        if config.probes == 1:
            rule = 'be even with `estimator` = "antithetic"'
            raise _error("probes", rule, 1, "Try 256.")
    elif config.window < max(MIN_PAIRS, config.probes):
        rule = f"be at least max({MIN_PAIRS}, `probes`)"
        raise _error("window", rule, config.window, "Hold at least one record.")
    check_rank(config.rank)
    if not 0 <= config.momentum < 1:
        raise _error("momentum", "lie in 0 ≤ μ < 1", config.momentum, "Try 0.9.")
    for name, advice in (
        ("exploration", "Try 0.3."),
        ("curvature", "Try 0.1."),
        ("smoothing", "Try 1.5."),
    ):
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise _error(name, "be finite and not negative", value, advice)
    if not 0 <= config.monomials_kept < 1:
        rule = "lie in 0 ≤ share < 1"
        raise _error("monomials_kept", rule, config.monomials_kept, "Try 0.5.")
    if not 1 <= config.degree <= 3:
        raise _error("degree", "be 1, 2 or 3", config.degree, "Choose one of them.")
    if config.images is not None and min(config.images) < 1:
        rule = "hold three sizes of at least 1"
        raise _error("images", rule, config.images, "Write (n, height, width).")
    if config.images is not None and config.smoothing == 0:
        raise _error(
            "images", "be None with `smoothing` = 0", config.images, "Drop it."
        )
    if config.images is not None and config.probes > 1:
        raise _error("images", "be None with `probes` > 1", config.images, "Drop one.")
    exact = config.screening == "exact" and config.estimator != "monomials"
    if config.candidate_draw == "uniform" and exact:
        raise _error(
            "candidate_draw",
            'be "gaussian" with exact screening of this estimator',
            config.candidate_draw,
            'Set `screening="explicit"`, or use Gaussian candidates of equal variance.',
        )
    if config.exploration == 0 and config.probes > 1 and config.probe_std is None:
        advice = "Set `probe_std`, or an `exploration` above 0."
        raise _error("probe_std", "be given with `exploration` = 0", None, advice)


def _error(name: str, rule: str, value: object, advice: str) -> ValueError:
    return ValueError(f"`{name}` must {rule}; got {value!r}. {advice}")
