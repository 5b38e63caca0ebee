"""A change of arithmetic moves the ids of the runs it concerns, and is said."""

from __future__ import annotations

import threading

import pytest

from blocks import ALGORITHMS
from pipeline import rules
from pipeline.config import load_config
from pipeline.replay import replay
from pipeline.rules import Rule
from pipeline.runs import open_run, summary
from pipeline.train import resume, train


def of_sgd(config) -> bool:
    return config.algorithm.kind == "sgd"


OLD = Rule("round-up", "sums are rounded up", of_sgd)
NEW = Rule("pool-ties", "only the first tied maximum gets credit", of_sgd)


@pytest.fixture
def in_force(monkeypatch):
    return lambda *some: monkeypatch.setattr(rules, "RULES", some)


def ids(kind: str) -> tuple[str, dict[str, str]]:
    config = load_config(None, [], {"algorithm": kind})
    return config.run_id("digits", "c"), config.former_ids("digits", "c")


def test_run_id__moves_with_a_rule_and_only_where_it_concerns_the_run(in_force) -> None:
    in_force()
    before, other = ids("sgd"), ids("nd-cao")
    in_force(OLD)
    assert ids("nd-cao") == other
    assert ids("sgd")[0] != before[0]


def test_former_ids__are_those_of_every_older_version_newest_first(in_force) -> None:
    in_force()
    first = ids("sgd")[0]
    in_force(OLD)
    second = ids("sgd")[0]
    in_force(OLD, NEW)
    found = ids("sgd")[1]
    assert list(found) == [second, first]
    assert found[second] == "pool-ties: only the first tied maximum gets credit"
    assert found[first].startswith("round-up: sums are rounded up; pool-ties: ")


def stopped(config, results):
    event = threading.Event()
    event.set()
    ds = train(config, results=results, stop=event)
    assert ds.attrs["status"] == "interrupted"
    return ds


def test_train__says_which_run_of_an_older_version_it_does_not_take(
    in_force, tiny, tmp_path, caplog
) -> None:
    config = tiny(algorithm="sgd", budget={"steps": 2})
    in_force()
    old = train(config, results=tmp_path)
    in_force(NEW)
    new = train(config, results=tmp_path)
    assert new.attrs["run_id"] != old.attrs["run_id"]
    (text,) = summary(new)["warnings"]
    assert text == caplog.messages[-1]
    assert f"`run` {old.attrs['run_id']}.zarr is this run as an older version" in text
    assert "pool-ties: only the first tied maximum gets credit" in text
    open_run(old.attrs["store"])  # kept as it was
    again = summary(train(config, results=tmp_path))
    assert (again["status"], again["warnings"]) == ("exists", [])


def test_replay__says_that_a_run_followed_other_rules(
    in_force, tiny, tmp_path, caplog
) -> None:
    in_force()
    old = train(tiny(algorithm="sgd", budget={"steps": 2}), results=tmp_path)
    assert replay(old.attrs["store"])["warnings"] == []
    in_force(NEW)
    (text,) = replay(old.attrs["store"])["warnings"]
    assert text == caplog.messages[-1]
    assert "pool-ties: only the first tied maximum gets credit" in text
    new = train(tiny(algorithm="sgd", budget={"steps": 2}), results=tmp_path)
    assert replay(new.attrs["store"])["warnings"] == []
    in_force()  # as an older version would see it
    (text,) = replay(new.attrs["store"])["warnings"]
    assert "unknown here: pool-ties" in text


def test_resume__refuses_states_of_other_rules_in_a_sentence(
    in_force, tiny, tmp_path
) -> None:
    config = tiny(algorithm="sgd", budget={"steps": 9})
    in_force()
    old = stopped(config, tmp_path)
    in_force(NEW)
    with pytest.raises(ValueError, match=r"`checkpoint` must follow .*pool-ties: only"):
        resume(old.attrs["store"])
    new = stopped(config, tmp_path)
    assert "checkpoint.npz is this run as an older" in new.attrs["warnings"][0]
    assert resume(new.attrs["run_id"], results=tmp_path).attrs["status"] == "complete"


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_rules__concern_the_runs_whose_arithmetic_changed_and_no_others(name) -> None:
    def of(model: str, **settings) -> tuple[str, ...]:
        flags = {"algorithm": {"kind": name, **settings}, "model": {"name": model}}
        return rules.rules_of(load_config(None, [], flags))

    assert of("mlp") == of("resnet8") == ()
    ties = ("first-of-tied-maxima",) if name == "activity-perturbation" else ()
    assert of("lenet") == of("cifar_cnn") == of("mine:network") == ties
    if name == "dbs":
        assert of("mlp", measured=True) == ("times-of-their-sizes",)
        assert of("mlp", speeds=[1.0, 2.0]) == ()
