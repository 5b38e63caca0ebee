"""Checks that an algorithm is, uses and sends what it declares, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from blocks.algorithm import Combine, Information, InformationError
from blocks.checking import bits, made, must, start
from blocks.team import Team, listens

DECLARED = (
    *("kind", "information", "combine", "modes", "paper", "blockwise", "scored"),
    *("defaults", "n_probes"),
)
RUN_SETTINGS = {"loss_samples", "redraw_every", "blocks", "nodes", "machines"}
DATA = ("shard", "whole", "pooled")
# A layer that learns from the output's error differentiates itself, but nothing else.
DERIVATIVES = (
    Information.GRADIENT_ORACLE | Information.JACOBIAN_ORACLE | Information.OUTPUT_ERROR
)
ORACLES = DERIVATIVES | Information.LOSS_ORACLE

Question = Callable[[Any, Any, Tensor], Any]
# What a step may ask (observation, oracle, parameters), and the flags that allow it:
# any of those named, whole.
QUESTIONS: dict[str, tuple[Question, *tuple[Information, ...]]] = {
    "record": (
        lambda seen, _, __: seen.record,
        Information.SHARED_LOSS,
        Information.PER_SAMPLE_LOSS,
    ),
    "inbox": (lambda seen, _, __: seen.inbox, Information.NEIGHBOURS),
    "scalars": (lambda seen, _, __: seen.scalars, Information.NEIGHBOURS),
    "loss": (lambda _, ask, at: ask.loss(at), Information.LOSS_ORACLE),
    "common_loss": (lambda _, ask, at: ask.common_loss(at), Information.LOSS_ORACLE),
    "gradient": (
        lambda _, ask, at: ask.gradient(at, None),
        Information.GRADIENT_ORACLE,
    ),
    "linearised": (
        lambda _, ask, at: ask.linearised(at, None),
        Information.JACOBIAN_ORACLE,
    ),
    "direct_feedback": (
        lambda _, ask, at: ask.direct_feedback(at, None, torch.zeros),
        Information.OUTPUT_ERROR | Information.OWN_ACTIVATIONS,
    ),
    "activity_estimate": (
        lambda _, ask, __: ask.activity_estimate(),
        Information.PER_SAMPLE_LOSS | Information.OWN_ACTIVATIONS,
    ),
}


def check_declarations(algorithm: Any, problem: str = "mlp") -> None:
    """The class declares what the harness needs, and does not contradict itself."""
    it = made(algorithm)
    cls = type(it)
    missing = [name for name in DECLARED if not hasattr(it, name)]
    must(not missing, f"`{cls.__name__}` must declare {', '.join(missing)}.")
    must(is_dataclass(cls), f"`{cls.__name__}` must be a dataclass.")
    named = get_args(get_type_hints(cls).get("kind"))
    must(named == (it.kind,), f"`kind` must be Literal[{it.kind!r}]; got {named}.")
    must(
        getattr(cls, "__pydantic_config__", None) == {"extra": "forbid"},
        '`__pydantic_config__` must be {"extra": "forbid"}.',
    )
    must(isinstance(it.information, Information), "`information` must be a flag.")
    must(isinstance(it.combine, Combine), "`combine` must be a `Combine`.")
    known = bool(it.modes) and it.modes <= {"sync", "async"}
    must(known, f"`modes` must be sync, async or both; got {set(it.modes)}.")
    one_line = bool(it.paper.strip()) and "\n" not in it.paper
    must(one_line, f"`paper` must be one line of text; got {it.paper!r}.")
    joined = it.combine is Combine.JOIN
    must(it.blockwise is joined, f"`blockwise` must be {joined} with {it.combine}.")
    losses = Information.SHARED_LOSS | Information.PER_SAMPLE_LOSS
    shared = bool(it.information & losses)
    must(it.scored is shared, f"`scored` must be {shared} with {it.information}.")
    other = set(it.defaults) - RUN_SETTINGS
    must(not other, f"`defaults` must be of {sorted(RUN_SETTINGS)}; got {other}.")
    must(it.n_probes >= 1, f"`n_probes` must be at least 1; got {it.n_probes}.")
    data = getattr(it, "data", "shard")
    must(data in DATA, f"`data` must be one of {DATA}; got {data!r}.")
    if getattr(it, "served", False):
        must(it.modes == {"async"}, f"a served method must be async; got {it.modes}.")
    _check_settings(it)


def _check_settings(it: Any) -> None:
    """Settings are plain values, and those that there are not are refused."""
    try:
        json.dumps(asdict(it))
    except (TypeError, ValueError) as err:
        raise AssertionError(f"settings must be JSON values: {err}.") from err
    try:
        type(it)(no_such_setting=1)
    except TypeError as err:
        must("no_such_setting" in str(err), f"unknown settings must be named: {err}.")
    else:
        raise AssertionError("a setting that there is not must be refused.")


def check_information(algorithm: Any, problem: str = "mlp") -> None:
    """A run needs no more than is declared; a step that asks for more is refused."""
    it = made(algorithm)
    try:
        played = start(it, problem).advance(4)
    except InformationError as err:
        raise AssertionError(
            f"`information` must name all that is used: {err}"
        ) from err
    moment = played.moments()[0]
    at = played.problem.model.initial_params()
    for name, (question, *flags) in QUESTIONS.items():
        declared = any(every in it.information for every in flags)
        try:
            played.take(moment, _asking(it, question, at))
        except InformationError as err:
            must(not declared, f"`{name}` is declared, and must not be refused: {err}")
            must("Add the flag" in str(err), f"a refusal must say what to do: {err}")
        else:
            must(declared, f"`{name}` is not declared, and must be refused.")
    if not it.information & ORACLES:
        for moment in played.moments():
            oracle = played.oracle(moment)
            it.step(moment.state, moment.observation, oracle, np.random.default_rng(0))
            asked = any(count != "0" for _, count in bits(oracle.counters))
            must(not asked, f"the oracle must not be asked; got {oracle.counters}.")


def _asking(it: Any, question: Question, at: Tensor) -> Any:
    """The same algorithm, but its step asks first, whatever it declares."""
    honest: Any = type(it)

    class Asking(honest):  # type: ignore[misc]
        def step(self, state: Any, seen: Any, oracle: Any, rng: Any) -> Any:
            question(seen, oracle, at)
            return honest.step(self, state, seen, oracle, rng)

    return Asking(**{f.name: getattr(it, f.name) for f in fields(it) if f.init})


def check_derivatives(algorithm: Any, problem: str = "mlp") -> None:
    """Something is saved for a backward pass if, and only if, that is declared."""
    saved: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    played = start(algorithm, problem)
    with saved_tensors_hooks(note, lambda packed: packed):
        played.advance(5)
    declared = played.algorithm.information & DERIVATIVES
    must(
        bool(saved) is bool(declared),
        "derivatives must be declared if, and only if, they are used; declared "
        f"{declared}, saved {len(saved)} tensors for backward passes.",
    )


def check_senders(algorithm: Any, problem: str = "mlp") -> None:
    """Nodes listen to others of their team, whoever asks; a node alone to nobody."""
    it = made(algorithm)
    talks = bool(it.information & Information.NEIGHBOURS)
    if not talks or getattr(it, "served", False):
        return
    must(hasattr(it, "senders"), "`senders` must be there, as nodes talk.")
    for n_nodes in (1, 2, 3):
        team = Team.of(n_nodes, 12, seed=1, machines=min(2, n_nodes))
        try:
            played = start(it, problem, n_nodes)
            for step in range(12):
                scalars = tuple(m.scalars for m in played.messages)
                for node in range(n_nodes):
                    asked = (it, node, team, step, scalars)
                    again = listens(*asked) == listens(*asked)
                    must(again, f"`senders` must answer alike; not at step {step}.")
                played.advance(1)
        except ValueError as err:
            raise AssertionError(f"with {n_nodes} nodes: {err}") from err
