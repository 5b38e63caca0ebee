"""Workers of one cluster are lent to one run at a time."""

from __future__ import annotations

import threading

import pytest

from pipeline.config import validate_config
from pipeline.leases import Leases, placed, workers_needed


def test_take__lends_each_worker_once() -> None:
    leases = Leases(lambda: ["a", "b", "c"])
    assert leases.take(2) == ("a", "b")
    assert leases.take(2, timeout_s=0.01) == ()
    assert leases.take(1) == ("c",)
    leases.give_back(("a", "b"))
    assert leases.take(2) == ("a", "b")


def test_take__waits_for_what_is_given_back() -> None:
    leases = Leases(lambda: ["a"])
    mine = leases.take(1)
    threading.Timer(0.05, leases.give_back, [mine]).start()
    assert leases.take(1, timeout_s=10) == ("a",)


def test_take__more_than_there_are_is_all_of_them() -> None:
    leases = Leases(lambda: ["a", "b"])
    assert leases.take(5) == ("a", "b")


def test_take__without_workers_is_nothing_until_one_comes() -> None:
    there: list[str] = []
    leases = Leases(lambda: list(there))
    assert leases.take(1, timeout_s=0.01) == ()
    there.append("a")
    assert leases.take(1) == ("a",)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1),
        ({"own_worker": [0, 1], "cluster": {"workers": 3}}, 3),
        ({"mode": "async", "cluster": {"workers": 3}}, 3),
        ({"mode": "async", "staleness": 0, "cluster": {"workers": 3}}, 1),
    ],
)
def test_workers_needed__are_one_where_the_result_does_not_depend_on_them(
    settings, expected
) -> None:
    assert workers_needed(validate_config(settings)) == expected


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_placed__is_the_same_run(mode) -> None:
    config = validate_config({"mode": mode, "cluster": {"workers": 3}})
    moved = placed(config, ("a", "b"), "tcp://somewhere:1")
    assert moved.cluster.only == ("a", "b")
    assert moved.run_id("digits", "") == config.run_id("digits", "")
