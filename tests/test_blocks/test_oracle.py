"""The guarded oracle: right answers, only those that are declared, all counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blocks.algorithm import Information, InformationError, Oracle
from blocks.oracle import Counters

EVERYTHING = Information.LOSS_ORACLE | Information.GRADIENT_ORACLE


def test_loss__is_the_mean_over_the_steps_own_minibatch(problem):
    small = problem("logistic")
    params = small.model.initial_params()
    for step in (0, 2):
        inputs, targets = small.minibatch(step)
        expected = small.loss(small.model.forward(params, inputs), targets).mean()
        answer = small.oracle(EVERYTHING, step).loss(params)
        assert answer == pytest.approx(float(expected), rel=1e-6)


def test_gradient__is_that_of_back_propagation(problem):
    small = problem("mlp")
    answer = small.oracle(EVERYTHING, 1).gradient(small.model.initial_params(), None)
    inputs, targets = small.minibatch(1)
    loss = small.loss(small.module(inputs), targets).mean()
    parts = torch.autograd.grad(loss, list(small.module.parameters()))
    expected = torch.cat([part.flatten() for part in parts])
    torch.testing.assert_close(answer.gradient, expected, rtol=1e-6, atol=1e-7)
    assert answer.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert answer.buffers is None


def test_gradient__agrees_with_finite_differences_of_the_loss(problem, rng):
    small = problem("mlp")
    oracle = small.oracle(EVERYTHING)
    params = small.model.initial_params()
    direction = torch.tensor(rng.standard_normal(len(params)), dtype=torch.float32)
    ahead, behind = (oracle.loss(params + h * direction) for h in (1e-2, -1e-2))
    slope = float(oracle.gradient(params, None).gradient @ direction)
    # Third-order term and float32 rounding of the losses, both about 1e-4.
    assert (ahead - behind) / 2e-2 == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize("allowed", [Information.NOTHING, *Information])
def test_question__is_answered_only_where_declared(problem, allowed):
    small = problem("quadratic")
    oracle, params = small.oracle(allowed), small.model.initial_params()
    questions = {
        Information.LOSS_ORACLE: lambda: oracle.loss(params),
        Information.GRADIENT_ORACLE: lambda: oracle.gradient(params, None),
        Information.JACOBIAN_ORACLE: lambda: oracle.linearised(params, None),
    }
    for flag, ask in questions.items():
        if allowed & flag:
            ask()
        else:
            before = replace(oracle.counters)
            with pytest.raises(InformationError, match=f"{flag.name}.*declares"):
                ask()
            assert oracle.counters == before


@pytest.mark.parametrize(
    "flag", [Information.OUTPUT_ERROR, Information.OWN_ACTIVATIONS]
)
def test_direct_feedback__needs_both_of_its_declarations(problem, flag):
    small = problem("mlp")
    params = small.model.initial_params()
    oracle = small.oracle(EVERYTHING | flag)
    with pytest.raises(InformationError, match="Add the flag"):
        oracle.direct_feedback(params, None, torch.ones)
    assert oracle.counters == Counters()
    both = Information.OUTPUT_ERROR | Information.OWN_ACTIVATIONS
    oracle = small.oracle(both)
    assert oracle.direct_feedback(params, None, torch.ones).gradient.shape == (43,)
    assert oracle.counters == Counters(n_gradient_evals=1, n_samples=4)


@pytest.mark.parametrize(
    "flag", [Information.PER_SAMPLE_LOSS, Information.OWN_ACTIVATIONS]
)
def test_activity_estimate__needs_both_of_its_declarations(problem, flag):
    small, told = problem("mlp"), torch.ones(43)
    asked = small.oracle(EVERYTHING | flag, credit=lambda: told)
    with pytest.raises(InformationError, match="Add the flag"):
        asked.activity_estimate()
    both = Information.PER_SAMPLE_LOSS | Information.OWN_ACTIVATIONS
    oracle = small.oracle(both, credit=lambda: told)
    assert oracle.activity_estimate() is told
    assert oracle.counters == Counters()


def test_activity_estimate__of_a_score_without_noise_says_what_to_do(problem):
    both = Information.PER_SAMPLE_LOSS | Information.OWN_ACTIVATIONS
    with pytest.raises(ValueError, match=r"must have .* got none here\. Score"):
        problem("mlp").oracle(both).activity_estimate()


def test_counters__count_every_answer(problem):
    small = problem("quadratic")
    oracle, params = small.oracle(EVERYTHING), small.model.initial_params()
    for _ in range(3):
        oracle.loss(params)
    oracle.gradient(params, None)
    assert oracle.counters == Counters(n_loss_evals=3, n_gradient_evals=1, n_samples=16)


def test_counters__add_up():
    total = Counters(1, 2, 3, 4)
    total.add(Counters(10, 20, 30, 40))
    assert total == Counters(11, 22, 33, 44)


def test_oracle__shows_neither_model_nor_data(problem):
    oracle = problem("quadratic").oracle(EVERYTHING)
    public = {name for name in dir(oracle) if not name.startswith("_")}
    assert public == {
        "activity_estimate",
        "common_loss",
        "counters",
        "device",
        "direct_feedback",
        "gradient",
        "linearised",
        "loss",
    }
    assert isinstance(oracle, Oracle)
    with pytest.raises(AttributeError):
        oracle.anything = 1


def test_loss__builds_no_graph(problem):
    small = problem("mlp")
    params = small.model.initial_params().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pytest.fail, lambda x: x):
        assert isinstance(small.oracle(EVERYTHING).loss(params), float)
