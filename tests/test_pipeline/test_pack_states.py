"""States of every algorithm survive a checkpoint: arrays and JSON, bit for bit."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from blocks import ALGORITHMS
from blocks.algorithm import SERVER
from blocks.oracle import Counters
from pipeline import pack
from pipeline.config import RunConfig, validate_config
from pipeline.context import Context, RunSpec
from pipeline.data_store import open_store
from pipeline.executor import ScoreTask
from pipeline.loss_board import LocalBoard
from pipeline.placement import place
from pipeline.resolve import resolve
from pipeline.rounds import Piece, run_in_process
from pipeline.store import ensure_store
from pipeline.talk import Talk
from pipeline.updates import published

# Paths through the algorithms that leave other things in a state than the defaults.
VARIANTS = (
    {"kind": "nd-cao", "estimator": "monomials", "monomials_kept": 0.5, "window": 4},
    {"kind": "nd-cao", "probes": 4, "window": 8},
)
SETTINGS = [*({"kind": kind} for kind in ALGORITHMS), *VARIANTS]
every_algorithm = pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values()))
)


def leaves(value):
    """Yield every leaf of nested dataclasses and tuples, arrays as (dtype, bytes)."""
    if is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value)
        yield str(value.dtype), array.shape, array.tobytes()
    else:
        yield repr(value)


def same(first, second):
    return list(leaves(first)) == list(leaves(second))


@pytest.fixture(scope="module")
def digits():
    return open_store(ensure_store("digits"))


def served(context, states, n_rounds):
    """Every node of a served method in turn, at the model as it was in the end."""
    for k in range(n_rounds):
        for node in states:
            inbox = {SERVER: view(context).payload}
            states[node] = context.update(node, k, states[node][0], None, inbox)[:2]
    return states


def view(context):
    algorithm = context.algorithm
    server = algorithm.open(context.initial, context.buffers, context.team)
    return algorithm.view(server)


def heard(context, states, k):
    """By node: the (inbox, scalars) of step k."""
    if context.served:
        return dict.fromkeys(states, ({SERVER: view(context).payload}, ()))
    if not context.talks:
        return dict.fromkeys(states, ({}, ()))
    owners = dict.fromkeys(states, 0)
    return Talk(context, owners, 0, None, Counters(), 0.0).round(k, states)


@pytest.fixture
def played(digits):
    """Return the function that trains some rounds; gives (context, node states)."""

    def play(settings, n_rounds=6):
        config = validate_config(
            {
                "algorithm": settings,
                "blocks": "by_layer"
                if ALGORITHMS[settings["kind"]].blockwise
                else None,
                "model": {"hidden": [7]},
                "loss_samples": 40,
                "budget": {"steps": 20},
            }
        )
        spec = RunSpec("run", resolve(config, digits), "", "", 20)
        context = Context(spec, digits)
        states, _ = context.start()
        if context.served:
            return context, served(context, states, n_rounds)
        shares = place(context.n_nodes, config.n_shards, 1)
        piece = Piece(spec, "", "", 0, n_rounds, shares, 1.0)
        return context, run_in_process(context, piece, states, LocalBoard())[0]

    return play


@every_algorithm
def test_pack__of_a_state_and_back_keeps_every_bit(played, settings):
    _, states = played(settings)
    for state in states.values():
        tree, arrays = pack.pack(state)
        assert same(pack.unpack(json.loads(json.dumps(tree)), arrays), state)
        assert type(pack.unpack(tree, arrays)[0]) is type(state[0])


@every_algorithm
def test_checkpoint__holds_no_pickle_and_goes_on_bit_for_bit(
    played, settings, tmp_path
):
    context, states = played(settings)
    path = tmp_path / "run.checkpoint.npz"
    pack.save(path, {node: state for node, (state, _) in states.items()})
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    loaded = pack.load(path)
    record, credits = None, {}
    if context.algorithm.scored:
        messages = {node: message for node, (_, message) in states.items()}
        task = ScoreTask(6, (6,) * context.n_nodes, {}, context.subset(6))
        parts = context.score(messages, task.steps, range(4), 6)
        record, credits = published(context, task, parts)
    inboxes = heard(context, states, 6)
    for node, (state, _) in states.items():
        given = (record, *inboxes[node])
        more = {"credit": credits.get(node)}
        expected = context.update(node, 6, state, *given, **more)[:2]
        assert same(context.update(node, 6, loaded[node], *given, **more)[:2], expected)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_settings__survive_the_configuration_as_json(kind):
    config = validate_config({"algorithm": kind})
    assert type(config.algorithm) is ALGORITHMS[kind]
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_settings__that_no_algorithm_has_are_refused(kind):
    with pytest.raises(ValueError, match=r"`algorithm\.windw` is not a setting"):
        validate_config({"algorithm": {"kind": kind, "windw": 3}})


def test_kind__that_is_not_registered_is_refused_with_those_that_are():
    names = ", ".join(ALGORITHMS)
    with pytest.raises(ValueError, match=rf"must be one of {names}; got 'nd-coa'"):
        validate_config({"algorithm": "nd-coa"})
