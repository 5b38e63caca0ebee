"""The contract of an algorithm as checks that anybody can run on anybody's algorithm.

A check plays the algorithm on a small problem and returns nothing, or raises
``AssertionError`` saying what is wrong. In a test::

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(check):
        check(MyAlgorithm(step_size=0.1))

Every check takes the algorithm, or what makes one when called (its class, for its
defaults), and the name of a problem: one of ``blocks.rehearsal.PROBLEMS``.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import (
    Combine,
    Information,
    LossRecord,
    Message,
    Node,
    Observation,
)
from blocks.checking import (
    bits,
    difference,
    leaves,
    made,
    must,
    start,
    telling_moments,
)
from blocks.declared import (
    check_declarations,
    check_derivatives,
    check_information,
    check_senders,
)
from blocks.rehearsal import make_problem

Check = Callable[..., None]


def check_frozen(algorithm: Any, problem: str = "mlp") -> None:
    """Settings, states and messages are frozen dataclasses with slots."""
    played = start(algorithm, problem).advance(1)
    things = [played.algorithm, *played.states, *played.messages]
    for thing in things if played.server is None else [*things, played.server]:
        name = type(thing).__name__
        must(is_dataclass(thing), f"`{name}` must be a dataclass.")
        must(not hasattr(thing, "__dict__"), f"`{name}` must have `slots=True`.")
        field = fields(thing)[0].name
        try:
            setattr(thing, field, getattr(thing, field))
        except FrozenInstanceError:
            continue
        raise AssertionError(f"`{name}` must have `frozen=True`.")


# -- purity -------------------------------------------------------------------------


def check_determinism(algorithm: Any, problem: str = "mlp") -> None:
    """A step, and a whole run, give the same bits again."""
    first, second = (start(algorithm, problem) for _ in range(2))
    for moment in telling_moments(first):
        differing = difference(first.take(moment), first.take(moment))
        must(not differing, f"`step` must give the same bits again; not {differing}.")
    second.advance(first.step)
    for name in ("states", "messages"):
        differing = difference(getattr(first, name), getattr(second, name))
        must(not differing, f"a run must give the same {name} again; not {differing}.")


def check_purity(algorithm: Any, problem: str = "mlp") -> None:
    """``init`` and ``step`` neither change nor keep what they are given."""
    it, small = made(algorithm), make_problem(problem)
    params = small.model.initial_params()
    oracle, rng = small.oracle(it.information), np.random.default_rng(0)
    begun = it.init(Node(0, 1), params, oracle, rng)
    same = torch.equal(params, small.model.initial_params())
    must(same, "`init` must not change its parameters.")
    before = bits(begun)
    params.add_(1.0)
    must(bits(begun) == before, "`init` must copy its parameters, not keep them.")
    played = start(algorithm, problem)
    for moment in telling_moments(played):
        shown = (moment.state, moment.observation)
        before = bits(shown)
        state, _ = played.take(moment)
        later = replace(moment.observation, step=moment.observation.step + 1)
        played.take(replace(moment, state=state, observation=later))
        must(bits(shown) == before, "`step` must not change what it is given.")


def check_generators(algorithm: Any, problem: str = "mlp") -> None:
    """Random numbers come from the generator that is given, never a global one."""

    def generators() -> dict[str, Any]:
        legacy = np.random.get_bit_generator()  # type: ignore[attr-defined]
        return {
            "torch": torch.get_rng_state().tolist(),
            "random": random.getstate(),
            "numpy": repr(legacy.state),
        }

    before = generators()
    start(algorithm, problem).advance(6)
    used = [name for name, state in generators().items() if state != before[name]]
    must(not used, f"`rng` must be the only generator; global ones used: {used}.")


def _restored(value: Any, path: str = "") -> Any:
    """``value`` from its parts, as from a checkpoint of arrays and JSON."""
    kind = type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        frozen = getattr(type(value), "__dataclass_params__").frozen  # noqa: B009
        must(frozen, f"`state{path}` must be frozen; got {kind}.")
        parts = {
            f.name: _restored(getattr(value, f.name), f"{path}.{f.name}")
            for f in fields(value)
            if f.init
        }
        return type(value)(**parts)
    if isinstance(value, tuple):
        return tuple(_restored(v, f"{path}[{i}]") for i, v in enumerate(value))
    plain = (Tensor, np.ndarray, bool, int, float, str, np.integer, np.floating)
    held = value is None or isinstance(value, plain)
    must(held, f"`state{path}` must be what a checkpoint can hold; got {kind}.")
    return pickle.loads(pickle.dumps(value))


def check_states(algorithm: Any, problem: str = "mlp") -> None:
    """States consist of plain parts; pickled and rebuilt they go on bit for bit."""
    played = start(algorithm, problem)
    for moment in telling_moments(played):
        rebuilt = _restored(moment.state), pickle.loads(pickle.dumps(moment.state))
        for copied in rebuilt:
            differing = difference(copied, moment.state)
            must(not differing, f"a state must survive a copy; {differing} does not.")
            again = played.take(replace(moment, state=copied))
            differing = difference(again, played.take(moment))
            must(not differing, f"a copied state must go on alike; not {differing}.")
    if played.server is not None:
        differing = difference(_restored(played.server), played.server)
        must(not differing, f"a server must survive a copy; {differing} does not.")


# -- messages -----------------------------------------------------------------------


def check_messages(algorithm: Any, problem: str = "mlp") -> None:
    """Messages are finite float32 of the node's own size, with what was declared."""
    played = start(algorithm, problem)
    whole = [played.problem.model.n_params] * len(played.messages)
    sizes = [b.size for b in played.blocks] or whole
    per_sample = played.algorithm.information & Information.PER_SAMPLE_LOSS
    probed = played.algorithm.n_probes > 1 and not per_sample
    tells = getattr(played.algorithm, "tells", False)
    for _ in range(5):
        for size, message in zip(sizes, played.messages, strict=True):
            for values in (message.point, message.solution):
                found = f"{values.dtype} {tuple(values.shape)}"
                right = values.dtype == torch.float32 and values.shape == (size,)
                must(right, f"a point must be float32 ({size},); got {found}.")
                must(bool(values.isfinite().all()), "a point must be finite.")
            std, told = message.probe_std, message.scalars
            must((std > 0) is probed, f"`probe_std` must go with probes; got {std}.")
            must(tells or not told, f"`tells` must be true to send scalars {told}.")
        played.advance(1)


def check_start(algorithm: Any, problem: str = "mlp") -> None:
    """The first messages stand for the initial parameters.

    Bit for bit; a mean over several replicas may round.
    """
    for n_nodes in (None, 1):
        played = start(algorithm, problem, n_nodes)
        first, found = played.problem.model.initial_params(), played.solution()
        several = len(played.messages) > 1 and played.server is None
        if several and played.algorithm.combine is Combine.MEAN:
            same = torch.allclose(found, first, rtol=1e-6, atol=1e-7)
        else:
            same = torch.equal(found, first)
        off = float((found - first).abs().max())
        must(same, f"a run must start at the initial parameters; off by {off:.3g}.")


def check_no_graph(algorithm: Any, problem: str = "mlp") -> None:
    """No state and no message holds on to an autograd graph."""
    played = start(algorithm, problem).advance(5)
    for path, leaf in leaves([played.states, played.messages]):
        if isinstance(leaf, Tensor):
            held = leaf.requires_grad or leaf.grad_fn is not None
            must(not held, f"tensors must be detached; {path} holds a graph.")


# -- records out of the ordinary, and the end of it all ------------------------------


def check_records(algorithm: Any, problem: str = "mlp") -> None:
    """A loss that is not finite moves no answer; a stale record is folded."""
    it = made(algorithm)
    if not it.scored:
        return
    played = start(it, problem).advance(5)
    moment = played.moments()[0]

    def fold(record: LossRecord) -> Message:
        observation = Observation(played.step, 100, it.information, record)
        message: Message = played.take(replace(moment, observation=observation))[1]
        must(bool(message.point.isfinite().all()), "a point must stay finite.")
        return message

    record, before = played.record(), played.messages[0]
    for bad in (float("nan"), float("inf")):
        message = fold(replace(record, losses=(bad,) * len(record.losses)))
        # A method whose scored point is its answer has to move that to go on.
        if before.answer is not None or it.n_probes > 1:
            same = torch.equal(message.solution, before.solution)
            must(same, f"a loss of {bad} must leave the answer where it was.")
    if "async" in it.modes:
        fold(replace(record, steps=(3,) * len(played.messages)))


def check_progress(algorithm: Any, problem: str = "mlp") -> None:
    """Sixty steps lower the loss."""
    played = start(algorithm, problem)
    before = played.solution_loss()
    after = played.advance(60, n_steps=60).solution_loss()
    must(after < before, f"the loss must fall in 60 steps; {before:.4g} → {after:.4g}.")


CHECKS: tuple[Check, ...] = (
    *(check_declarations, check_frozen, check_determinism, check_purity),
    *(check_generators, check_states, check_messages, check_start, check_senders),
    *(check_no_graph, check_derivatives, check_information, check_records),
    check_progress,
)


def check_algorithm(algorithm: Any, problem: str = "mlp") -> None:
    """Run every check on one problem; the first that fails raises.

    Parameters
    ----------
    algorithm : an instance, or what makes one when called without arguments.
    problem : "quadratic", "logistic" or "mlp".

    Raises
    ------
    AssertionError — naming what must hold and does not.
    """
    for check in CHECKS:
        check(algorithm, problem)
