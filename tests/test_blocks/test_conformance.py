"""The contract of ``blocks.algorithm``, for every algorithm on every small problem."""

from __future__ import annotations

from typing import Any

import pytest

from blocks import ALGORITHMS
from blocks.conformance import (
    CHECKS,
    check_determinism,
    check_messages,
    check_progress,
    check_purity,
)

# Settings beside the defaults that take another path through an algorithm.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nd-cao", {"estimator": "monomials", "n_monomials": 12, "monomials_kept": 0.5}),
    ("nd-cao", {"estimator": "kernel"}),
    ("nd-cao", {"screening": "explicit", "candidates": 20}),
    ("nd-cao", {"exploration_kept": True, "window": 3}),
    ("nd-cao", {"probes": 4, "window": 8}),
    ("sgd", {"momentum": 0.0, "weight_decay": 0.1}),
    ("open-es", {"population_size": 4, "ranked": False, "probe_kind": "sign"}),
    ("spsa", {"pairs": 3}),
    ("dfa", {"optimiser": "momentum"}),
    ("activity-perturbation", {"draws": 2, "noise": "gaussian"}),
    ("activity-perturbation", {"optimiser": "momentum"}),
    ("async-sgd", {"momentum": 0.5, "weight_decay": 0.1}),
    ("layerwise-async-sgd", {"momentum": 0.5, "weight_decay": 0.1}),
    ("next", {"linearisation": "partial", "cores": 2}),
    ("next", {"linearisation": "partial", "l1": 1e-3}),
    ("next", {"graph": "matchings", "l2": 1e-3}),
    ("nosync", {"attractor": "best", "exchange_every": 2}),
    ("nosync", {"attractor": "random", "exchange_every": 2, "pressure": "none"}),
    ("nosync", {"attractor": "loss-weighted", "exchange_every": 2, "pull": 1.0}),
    ("pso-ps", {"inertia": 0.9, "exchange_every": 2}),
    ("all-reduce-sgd", {"momentum": 0.0, "weight_decay": 0.1}),
    ("local-sgd", {"exchange_every": 1}),
    ("node-based", {"exchange_every": 2, "weight_decay": 0.1}),
    ("selsync", {"threshold": 0.01, "window": 3, "warm_up": 1}),
    ("dbs", {"adapt_every": 2, "batch_size": 4}),
    ("dbs", {"adapt_every": 2, "measured": True}),
    ("osp", {"important": 0.5, "weight_decay": 0.1}),
    ("osp", {"important": 1.0}),
)
SETTINGS = [pytest.param(kind, {}, id=kind) for kind in ALGORITHMS] + [
    pytest.param(kind, s, id=f"{kind}-{'-'.join(map(str, s.values()))}")
    for kind, s in VARIANTS
]
every_algorithm = pytest.mark.parametrize(("kind", "settings"), SETTINGS)
# What rounding could upset is checked on every problem, the rest on one of them.
EVERYWHERE = (check_determinism, check_purity, check_messages)
PLAYS = [
    *((check, "mlp") for check in CHECKS if check is not check_progress),
    *((check, name) for name in ("quadratic", "logistic") for check in EVERYWHERE),
    (check_progress, "quadratic"),
]


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_registry__names_an_algorithm_by_its_kind(kind):
    assert ALGORITHMS[kind]().kind == kind


@pytest.mark.parametrize(
    ("check", "problem"), PLAYS, ids=[f"{c.__name__}-{name}" for c, name in PLAYS]
)
@every_algorithm
def test_algorithm__keeps_the_contract(kind, settings, check, problem):
    check(ALGORITHMS[kind](**settings), problem)
