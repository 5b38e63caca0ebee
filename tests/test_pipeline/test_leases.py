"""Workers of one cluster are lent to one run at a time."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.config import ClusterConfig, validate_config
from pipeline.leases import Leases, lent, planned, workers_needed


def leases_of(*names, **settings):
    leases = Leases(**settings)
    leases.update(names)
    return leases


def never():
    return False


def at_once(leases, wanted):
    """Take what can be had without waiting."""
    asked = iter([False, True])
    return leases.take(wanted, lambda: next(asked))


@pytest.fixture
def asking():
    """Ask in a thread of its own; gives the names and who got them, in order."""
    order, threads = [], []

    def ask(leases, who, wanted):
        before = len(leases._queue)

        def take():
            order.append((who, leases.take(wanted, never)))

        threads.append(threading.Thread(target=take))
        threads[-1].start()
        deadline = time.monotonic() + 10
        while len(leases._queue) == before and not any(w == who for w, _ in order):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return order

    ask.join = lambda: [thread.join(10) for thread in threads]
    return ask


def test_take__lends_each_worker_once() -> None:
    leases = leases_of("a", "b", "c")
    assert at_once(leases, 2) == ("a", "b")
    assert at_once(leases, 2) == ()
    assert at_once(leases, 1) == ("c",)
    assert leases.n_lent == 3
    leases.give_back(("a", "b"))
    assert at_once(leases, 2) == ("a", "b")


def test_take__serves_in_the_order_of_asking(asking) -> None:
    leases = leases_of("a", "b")
    mine = at_once(leases, 2)
    asking(leases, "both", 2)
    order = asking(leases, "one", 1)
    leases.give_back(mine[:1])  # enough for the second, who must wait all the same
    assert order == []
    leases.give_back(mine[1:])
    deadline = time.monotonic() + 10
    while not order:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert order == [("both", ("a", "b"))]
    leases.give_back(("a",))
    asking.join()
    assert order[1] == ("one", ("a",))


def test_take__more_than_there_can_be_is_all_of_them() -> None:
    assert at_once(leases_of("a", "b"), 5) == ("a", "b")
    assert at_once(leases_of("a", "b", most=2), 5) == ("a", "b")


def test_take__waits_for_workers_that_a_cluster_may_still_start() -> None:
    leases = leases_of("a", most=2)
    assert at_once(leases, 2) == ()
    leases.update(["a", "b"])
    assert at_once(leases, 2) == ("a", "b")


def test_take__is_content_with_fewer_when_patience_ends() -> None:
    leases = leases_of("a", most=2, patience_s=0.05)
    assert leases.take(2, never) == ("a",)


def test_take__without_workers_is_nothing_until_one_comes(asking) -> None:
    leases = leases_of()
    assert at_once(leases, 1) == ()
    order = asking(leases, "first", 1)
    leases.update(["a"])
    asking.join()
    assert order == [("first", ("a",))]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1),
        ({"own_worker": [0, 1], "cluster": {"workers": 3}}, 3),
        ({"mode": "async", "cluster": {"workers": 3}}, 3),
        ({"mode": "async", "staleness": 0, "cluster": {"workers": 3}}, 1),
        ({"mode": "async", "cluster": {"kind": "in-process"}}, 0),
    ],
)
def test_workers_needed__are_one_where_the_result_does_not_depend_on_them(
    settings, expected
) -> None:
    assert workers_needed(validate_config(settings)) == expected


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_planned__is_the_same_run(mode) -> None:
    config = validate_config({"mode": mode, "cluster": {"workers": 3}})
    asked = planned(config)
    assert asked.cluster.workers == (1 if mode == "sync" else 3)
    assert asked.run_id("digits", "") == config.run_id("digits", "")


def test_lent__is_the_batchs_cluster_and_the_runs_limits() -> None:
    run = validate_config({"cluster": {"workers": 3, "task_timeout_s": 7}})
    tls = {"ca_file": "ca.pem", "cert": "c.pem", "key": "k.pem"}
    shared = ClusterConfig(kind="local", adapt=(1, 4), tls=tls, start_timeout_s=5)
    where = lent(run, ("b",), shared, "tls://somewhere:1")
    assert (where.kind, where.address) == ("address", "tls://somewhere:1")
    assert (where.only, where.workers, where.adapt) == (("b",), 1, None)
    assert (where.task_timeout_s, where.start_timeout_s) == (7, 5)
    assert where.tls == shared.tls
