"""The contract of ``blocks.algorithm``, for every algorithm on every small problem."""

from __future__ import annotations

import contextlib
import pickle
import random
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from blocks import ALGORITHMS
from blocks.algorithm import (
    Combine,
    Information,
    InformationError,
    Node,
    Observation,
)

PROBLEMS = ("quadratic", "logistic", "mlp")
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
every_problem = pytest.mark.parametrize("name", PROBLEMS)
GRADIENTS = Information.GRADIENT_ORACLE | Information.JACOBIAN_ORACLE
# A layer that learns from the output's error differentiates itself, but nothing else.
DERIVATIVES = GRADIENTS | Information.OUTPUT_ERROR
ORACLES = DERIVATIVES | Information.LOSS_ORACLE


def where(condition):
    """Return the settings of the algorithms for which ``condition`` holds."""
    chosen = [p for p in SETTINGS if condition(ALGORITHMS[p.values[0]])]
    return pytest.mark.parametrize(("kind", "settings"), chosen)


@pytest.fixture
def started(session, problem):
    """Return the function that plays an algorithm for some rounds on a problem."""

    def start(kind, settings, name="quadratic", n_rounds=0):
        return session(ALGORITHMS[kind](**settings), problem(name)).advance(n_rounds)

    return start


# -- declarations -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_registry__names_an_algorithm_by_its_kind(kind):
    algorithm = ALGORITHMS[kind]
    assert algorithm().kind == kind
    assert get_args(get_type_hints(algorithm)["kind"]) == (kind,)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_class__declares_what_the_harness_needs(kind):
    algorithm = ALGORITHMS[kind]
    assert is_dataclass(algorithm)
    assert algorithm.__pydantic_config__ == {"extra": "forbid"}
    assert isinstance(algorithm.information, Information)
    assert isinstance(algorithm.combine, Combine)
    assert algorithm.modes
    assert algorithm.modes <= {"sync", "async"}
    assert algorithm.paper.strip()
    assert "\n" not in algorithm.paper
    assert algorithm.blockwise is (algorithm.combine is Combine.JOIN)
    assert algorithm.scored is bool(algorithm.information & Information.SHARED_LOSS)
    assert set(algorithm.defaults) <= {
        "loss_samples",
        "redraw_every",
        "blocks",
        "nodes",
        "machines",
    }
    assert algorithm().n_probes >= 1


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_class__takes_no_unknown_setting(kind):
    with pytest.raises(TypeError, match="no_such_setting"):
        ALGORITHMS[kind](no_such_setting=1)


@every_algorithm
def test_everything__is_frozen_and_without_a_dict(kind, settings, started):
    played = started(kind, settings, n_rounds=1)
    for thing in (played.algorithm, played.states[0], played.messages[0]):
        assert not hasattr(thing, "__dict__")
        with pytest.raises(FrozenInstanceError):
            setattr(thing, fields(thing)[0].name, None)


# -- purity -------------------------------------------------------------------------


@every_problem
@every_algorithm
def test_step__gives_the_same_bits_again(kind, settings, name, started, bits_of):
    played = started(kind, settings, name, n_rounds=5)
    for moment in played.moments():
        assert bits_of(played.take(moment)) == bits_of(played.take(moment))


@every_problem
@every_algorithm
def test_run__gives_the_same_bits_again(kind, settings, name, started, bits_of):
    first, second = (started(kind, settings, name, n_rounds=6) for _ in range(2))
    assert bits_of(first.states) == bits_of(second.states)
    assert bits_of(first.messages) == bits_of(second.messages)


@every_problem
@every_algorithm
def test_step__leaves_its_inputs_alone(kind, settings, name, started, bits_of):
    played = started(kind, settings, name, n_rounds=5)
    for moment in played.moments():
        before = bits_of([moment.state, moment.observation])
        state, _ = played.take(moment)
        later = replace(moment.observation, step=moment.observation.step + 1)
        played.take(replace(moment, state=state, observation=later))
        assert bits_of([moment.state, moment.observation]) == before


@every_algorithm
def test_init__neither_changes_nor_keeps_its_parameters(
    kind, settings, problem, bits_of
):
    small, algorithm = problem("quadratic"), ALGORITHMS[kind](**settings)
    params = small.model.initial_params()
    oracle, rng = small.oracle(algorithm.information), np.random.default_rng(0)
    made = algorithm.init(Node(0, 1), params, oracle, rng)
    assert torch.equal(params, small.model.initial_params())
    before = bits_of(made)
    params.add_(1.0)
    assert bits_of(made) == before


@every_algorithm
def test_step__uses_no_global_generator(kind, settings, started):
    played = started(kind, settings, n_rounds=4)
    global_numpy = np.random.get_bit_generator()
    before = (torch.get_rng_state(), random.getstate(), repr(global_numpy.state))
    played.advance(2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), repr(global_numpy.state)) == before[1:]


@every_algorithm
def test_state__pickles_and_goes_on_bit_for_bit(kind, settings, started, bits_of):
    played = started(kind, settings, "mlp", n_rounds=5)
    for moment in played.moments():
        copied = pickle.loads(pickle.dumps(moment.state))
        assert bits_of(copied) == bits_of(moment.state)
        again = played.take(replace(moment, state=copied))
        assert bits_of(again) == bits_of(played.take(moment))


# -- messages -----------------------------------------------------------------------


@every_problem
@every_algorithm
def test_message__is_float32_and_of_the_nodes_own_size(kind, settings, name, started):
    played = started(kind, settings, name)
    whole = [played.problem.model.n_params] * len(played.messages)
    sizes = [b.size for b in played.blocks] or whole
    for _ in range(4):
        for size, message in zip(sizes, played.messages, strict=True):
            for values in (message.point, message.solution):
                assert values.dtype == torch.float32
                assert values.shape == (size,)
                assert bool(torch.isfinite(values).all())
            assert (message.probe_std > 0) is (played.algorithm.n_probes > 1)
        played.advance(1)


@every_algorithm
def test_message__first_stands_for_the_initial_parameters(kind, settings, started):
    played = started(kind, settings, "mlp")
    rtol = 0.0 if played.blocks else 3e-7  # three equal numbers, summed, by three
    first = played.problem.model.initial_params()
    torch.testing.assert_close(played.solution(), first, rtol=rtol, atol=0.0)


@every_algorithm
def test_nothing__holds_an_autograd_graph(kind, settings, started, tensors):
    played = started(kind, settings, "mlp", n_rounds=5)
    for _, tensor in tensors([played.states, played.messages]):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad


@every_algorithm
def test_gradient_free__saves_nothing_for_a_backward_pass(kind, settings, started):
    def refuse(tensor):
        raise AssertionError(f"{kind} saved {tuple(tensor.shape)} for a backward pass")

    played = started(kind, settings, "mlp")
    free = not played.algorithm.information & DERIVATIVES
    expected = contextlib.nullcontext() if free else pytest.raises(AssertionError)
    with expected, saved_tensors_hooks(refuse, lambda packed: packed):
        played.advance(5)


@every_algorithm
def test_solution__improves_a_quadratic(kind, settings, started):
    played = started(kind, settings)
    before = played.solution_loss()
    assert played.advance(60, n_steps=60).solution_loss() < before


# -- information --------------------------------------------------------------------

SHARED = Information.SHARED_LOSS | Information.PER_SAMPLE_LOSS
QUESTIONS = {
    "record": (lambda observation, oracle: observation.record, SHARED),
    "inbox": (lambda observation, oracle: observation.inbox, Information.NEIGHBOURS),
    "loss": (lambda _, oracle: oracle.loss(torch.zeros(6)), Information.LOSS_ORACLE),
    "gradient": (
        lambda _, oracle: oracle.gradient(torch.zeros(6), None),
        Information.GRADIENT_ORACLE,
    ),
    "linearised": (
        lambda _, oracle: oracle.linearised(torch.zeros(6), None),
        Information.JACOBIAN_ORACLE,
    ),
    "direct_feedback": (
        lambda _, oracle: oracle.direct_feedback(torch.zeros(6), None, torch.zeros),
        Information.OUTPUT_ERROR,
    ),
}


def cheating(algorithm, question):
    """Return an algorithm that asks ``question`` first, whatever it declares."""
    honest = type(algorithm)

    class Cheat(honest):
        def step(self, state, observation, oracle, rng):
            question(observation, oracle)
            return honest.step(self, state, observation, oracle, rng)

    return Cheat()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_cheat__is_refused_what_the_algorithm_does_not_declare(kind, question, started):
    ask, flags = QUESTIONS[question]
    played = started(kind, {}, n_rounds=1)
    cheat = cheating(played.algorithm, ask)
    if cheat.information & flags:
        played.take(played.moments()[0], cheat)
    else:
        with pytest.raises(InformationError, match="Add the flag"):
            played.take(played.moments()[0], cheat)


@where(lambda algorithm: not algorithm.information & ORACLES)
def test_shared_loss_only__never_calls_the_oracle(kind, settings, started):
    played = started(kind, settings, n_rounds=4)
    for moment in played.moments():
        oracle = played.problem.oracle(played.algorithm.information)
        rng = np.random.default_rng(0)
        played.algorithm.step(moment.state, moment.observation, oracle, rng)
        used = oracle.counters
        assert (used.n_loss_evals, used.n_gradient_evals, used.n_samples) == (0, 0, 0)


# -- records out of the ordinary ----------------------------------------------------


def folded(played, record):
    """What node 0 answers to ``record`` at its next step."""
    step = played.step
    observation = Observation(step, 100, played.algorithm.information, record)
    moment = replace(played.moments()[0], observation=observation)
    return played.take(moment)


@where(lambda algorithm: algorithm.scored)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss__leaves_the_answer_where_it_was(kind, settings, bad, started):
    played = started(kind, settings, n_rounds=5)
    record = played.record()
    record = replace(record, losses=(bad,) * len(record.losses))
    _, message = folded(played, record)
    assert bool(torch.isfinite(message.point).all())
    if not settings.get("exploration_kept"):
        assert torch.equal(message.solution, played.messages[0].solution)


@where(lambda algorithm: algorithm.scored and "async" in algorithm.modes)
def test_stale_record__of_an_earlier_point_is_folded(kind, settings, started):
    played = started(kind, settings, n_rounds=5)
    stale = replace(played.record(), steps=(3,) * len(played.messages))
    _, message = folded(played, stale)
    assert bool(torch.isfinite(message.point).all())
