"""Every check of ``blocks.conformance`` fails for an algorithm that is broken so."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from blocks import conformance
from blocks.activity_perturbation import ActivityPerturbation
from blocks.algorithm import Combine, Gradient, Information
from blocks.conformance import CHECKS, check_algorithm
from blocks.local_sgd import LocalSGD
from blocks.open_es import OpenES
from blocks.random_search import RandomSearch
from blocks.replica import ReplicaSGD
from blocks.sgd import SGD
from blocks.spsa import SPSA


def broken(base, **members):
    """The algorithm ``base`` with some members of its class replaced."""
    return type(f"Broken{base.__name__}", (base,), {"__slots__": (), **members})


def stepping(base, spoil, **members):
    """The algorithm ``base``, whose answers ``spoil`` changes.

    ``spoil``: (state, message, old state, observation, oracle) → (state, message).
    """

    def step(self, state, observation, oracle, rng):
        new = base.step(self, state, observation, oracle, rng)
        return spoil(*new, state, observation, oracle)

    return broken(base, step=step, **members)


def starting(base, spoil):
    """The algorithm ``base``, whose first state and message ``spoil`` changes."""

    def init(self, node, params, oracle, rng):
        return spoil(*base.init(self, node, params, oracle, rng), params)

    return broken(base, init=init)


# -- what goes wrong -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WrongKind(SGD):
    kind: Literal["sgd"] = "other"


@dataclass(frozen=True, slots=True)
class TakesAnything(SGD):
    def __init__(self, **settings: Any) -> None:
        pass


@dataclass(frozen=True, slots=True)
class NoPlainSetting(SGD):
    width: Any = frozenset({3})


class WithDict(SGD):
    pass


@dataclass(slots=True)
class Thawed:
    params: torch.Tensor
    buffers: Any = None
    optimiser: Any = None


@dataclass(frozen=True, slots=True)
class Odd:
    params: torch.Tensor
    buffers: Any
    optimiser: Any
    seen: Any


COUNT = itertools.count()


def shifted(message, by):
    return replace(message, point=message.point + by)


def with_noise(state, message, *_):
    return state, shifted(message, torch.tensor(np.random.default_rng().normal()))


def with_a_count(state, message, *_):
    return state, shifted(message, next(COUNT))


def writes_state(state, message, old, *_):
    old.params.mul_(0.5)
    return state, message


def writes_inbox(state, message, old, observation, oracle):
    for payload in observation.inbox.values():
        payload[0].mul_(0.5)
    return state, message


def draws(generator):
    def spoil(state, message, *_):
        generator()
        return state, message

    return spoil


def thawed(state, message, *_):
    return Thawed(state.params, None, state.optimiser), message


def with_a_set(state, message, *_):
    return Odd(state.params, None, state.optimiser, {1, 2}), message


def with_a_graph(state, message, *_):
    return replace(state, params=state.params.clone().requires_grad_()), message


def message_with(**changes):
    return lambda state, message, *_: (state, replace(message, **changes))


def as_double(state, message, *_):
    return state, replace(message, point=message.point.double())


def too_short(state, message, *_):
    return state, replace(message, point=message.point[:-1])


def to_nan(state, message, *_):
    return state, shifted(message, float("nan"))


def reads_inbox(state, message, old, observation, oracle):
    assert not observation.inbox
    return state, message


def asks_gradient(state, message, old, observation, oracle):
    oracle.gradient(message.point, None)
    return state, message


def asks_estimate(state, message, old, observation, oracle):
    oracle.activity_estimate()
    return state, message


def differentiates(state, message, *_):
    at = message.point.clone().requires_grad_()
    at.square().sum().backward()
    return state, message


def with_the_loss(state, message, old, observation, oracle):
    return state, shifted(message, 0.0 * observation.record.loss)


def stands_still(state, message, old, *_):
    return old, replace(message, point=old.params)


def no_gradient(self, replica, gradient, buffers, observation):
    return ReplicaSGD.descend(self, replica, 0.0 * gradient, buffers, observation)


class GuessedOracle:
    """Answers without a backward pass."""

    def gradient(self, params, buffers):
        return Gradient(0.0, params.clone(), buffers)


def guesses(self, state, observation, oracle, rng):
    return SGD.step(self, state, observation, GuessedOracle(), rng)


def listens_to(*nodes):
    return lambda self, node, team, step, scalars: nodes or (node,)


def moody(self, node, team, step, scalars):
    return () if team.n_nodes == 1 or next(COUNT) % 2 else ((node + 1) % team.n_nodes,)


def keeps_params(self, node, params, oracle, rng):
    state, message = SGD.init(self, node, params, oracle, rng)
    return replace(state, params=params), replace(message, point=params)


def moves_params(self, node, params, oracle, rng):
    return SGD.init(self, node, params.mul_(0.5), oracle, rng)


def a_little_off(state, message, params):
    return state, shifted(message, 1e-6)


def legacy_draw():
    np.random.rand()  # noqa: NPY002


ACTIVATIONS, LOSSES = Information.OWN_ACTIVATIONS, Information.PER_SAMPLE_LOSS
DERIVATIVE, SHARED = Information.GRADIENT_ORACLE, Information.SHARED_LOSS

MUTANTS = {
    "wrong-kind": ("declarations", WrongKind),
    "takes-anything": ("declarations", TakesAnything),
    "no-plain-setting": ("declarations", NoPlainSetting),
    "no-mode": ("declarations", broken(SGD, modes=frozenset())),
    "strange-mode": ("declarations", broken(SGD, modes=frozenset({"often"}))),
    "no-paper": ("declarations", broken(SGD, paper=" ")),
    "scored": ("declarations", broken(SGD, scored=True)),
    "joined": ("declarations", broken(SGD, combine=Combine.JOIN)),
    "strange-default": ("declarations", broken(SGD, defaults={"budget": 3})),
    "strange-data": ("declarations", broken(SGD, data="all")),
    "served-in-sync": ("declarations", broken(SGD, served=True)),
    "lax-settings": ("declarations", broken(SGD, __pydantic_config__={})),
    "has-a-dict": ("frozen", WithDict),
    "thawed": ("frozen", stepping(SGD, thawed)),
    "noise": ("determinism", stepping(SGD, with_noise)),
    "count": ("determinism", stepping(SGD, with_a_count)),
    "writes-state": ("purity", stepping(SGD, writes_state)),
    "writes-inbox": ("purity", stepping(LocalSGD, writes_inbox)),
    "keeps-params": ("purity", broken(SGD, init=keeps_params)),
    "moves-params": ("purity", broken(SGD, init=moves_params)),
    "torch-generator": ("generators", stepping(SGD, draws(lambda: torch.rand(1)))),
    "random-generator": ("generators", stepping(SGD, draws(random.random))),
    "numpy-generator": ("generators", stepping(SGD, draws(legacy_draw))),
    "set-in-state": ("states", stepping(SGD, with_a_set)),
    "float64": ("messages", stepping(SGD, as_double)),
    "short": ("messages", stepping(SGD, too_short)),
    "nan": ("messages", stepping(SGD, to_nan)),
    "probe-std": ("messages", stepping(SGD, message_with(probe_std=0.1))),
    "untold-scalars": ("messages", stepping(SGD, message_with(scalars=(1.0,)))),
    "starts-off-alone": ("start", starting(SGD, a_little_off)),
    "starts-off-joined": ("start", starting(OpenES, a_little_off)),
    "names-itself": ("senders", broken(LocalSGD, senders=listens_to())),
    "names-nobody-there": ("senders", broken(LocalSGD, senders=listens_to(9))),
    "moody": ("senders", broken(LocalSGD, senders=moody)),
    "graph": ("no_graph", stepping(SGD, with_a_graph)),
    "hidden-derivative": ("derivatives", stepping(OpenES, differentiates)),
    "unused-derivative": ("derivatives", broken(SGD, step=guesses)),
    "undeclared-inbox": ("information", stepping(SGD, reads_inbox)),
    "undeclared-gradient": ("information", stepping(OpenES, asks_gradient)),
    "estimate-without-losses": (
        "information",
        stepping(SGD, asks_estimate, information=ACTIVATIONS | DERIVATIVE),
    ),
    "estimate-without-activations": (
        "information",
        stepping(OpenES, asks_estimate, information=LOSSES),
    ),
    "losses-only": ("information", broken(ActivityPerturbation, information=LOSSES)),
    "activations-only": (
        "information",
        broken(ActivityPerturbation, information=ACTIVATIONS | SHARED),
    ),
    "folds-nan": ("records", stepping(OpenES, with_the_loss)),
    "stands-still": ("progress", stepping(SGD, stands_still)),
    "no-gradient": ("progress", broken(SGD, descend=no_gradient)),
}


def named(name):
    return getattr(conformance, f"check_{name}")


@pytest.mark.parametrize(("name", "mutant"), MUTANTS.values(), ids=list(MUTANTS))
def test_check__fails_with_a_sentence_for_what_it_is_there_for(name, mutant):
    with pytest.raises(AssertionError, match=r"\w+ \w+ .*\w"):
        named(name)(mutant)


def test_mutants__there_is_one_for_every_check():
    assert {named(name) for name, _ in MUTANTS.values()} == set(CHECKS)


@pytest.mark.parametrize(
    "base", [ActivityPerturbation, SGD, LocalSGD, OpenES, RandomSearch, SPSA]
)
def test_check__passes_what_the_mutants_are_made_of(base):
    check_algorithm(broken(base))


def test_check__takes_an_instance_a_class_or_a_factory():
    for algorithm in (SGD(step_size=0.1), SGD, lambda: SGD(step_size=0.1)):
        check_algorithm(algorithm, "logistic")


def test_check_algorithm__raises_what_the_first_check_that_fails_says():
    with pytest.raises(AssertionError, match="`kind` must be Literal"):
        check_algorithm(WrongKind)


def test_information__of_a_served_method_is_not_asked_for_senders():
    served = broken(SGD, served=True, information=Information.NEIGHBOURS)
    conformance.check_senders(served)
