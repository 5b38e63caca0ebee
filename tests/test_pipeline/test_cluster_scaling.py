"""Clusters that grow and shrink while a run goes on: it gives the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import dask
import pytest
import xarray as xr
from distributed import Client, Event, LocalCluster

from pipeline.cluster import SETTINGS, Cluster, open_cluster
from pipeline.cluster_adapt import OperatorBounds, Wanted, adapt
from pipeline.cluster_config import ClusterConfig
from pipeline.pending import AnswerLost, fetch
from pipeline.replay import replay
from pipeline.train import train

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WAIT_S = 90.0
#: About ten seconds on one worker, in pieces of a third of a second.
FLAGS = {
    "blocks": "by_unit:4",
    "budget": {"steps": 300},
    "eval_every": 10,
    "delays": {0: 0.03},
}


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory) -> xr.Dataset:
    """The run on one worker process."""
    config = tiny(**FLAGS | {"delays": {}}, cluster={"kind": "local", "workers": 1})
    return train(config, results=tmp_path_factory.mktemp("expected"))


@contextlib.contextmanager
def local_cluster(n_workers: int):
    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
    ):
        yield cluster


@contextlib.contextmanager
def scaled_at(cluster: LocalCluster, *changes: tuple[int, int]):
    """Scale a cluster to n workers as soon as a run has published a version.

    Each change is (version, n). Yields the list of those that came true: (version, n)
    once there were n workers.
    """
    over = threading.Event()
    done: list[tuple[int, int]] = []

    def version() -> int:
        held = list(cluster.scheduler.extensions["variables"].variables.values())
        return max((one["value"]["version"] for one in held), default=-1)

    def watch() -> None:
        for at, n in changes:
            while version() < at:
                if over.wait(0.01):
                    return
            cluster.scale(n)
            while len(cluster.scheduler.workers) != n:
                if over.wait(0.01):
                    return
            done.append((version(), n))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join(WAIT_S)


@pytest.fixture
def at_first(monkeypatch) -> list[int]:
    """Numbers of workers that runs found when their cluster was opened."""
    found: list[int] = []

    @contextlib.contextmanager
    def opened(*arguments):
        with open_cluster(*arguments) as cluster:
            found.append(len(cluster.workers()))
            yield cluster

    monkeypatch.setattr("pipeline.running.open_cluster", opened)
    return found


def test_adapt__a_synchronous_run_grows_and_gives_the_same_bits(
    expected, tiny, at_first, tmp_path
) -> None:
    cluster = {"kind": "local", "adapt": [1, 4]}
    ds = train(tiny(**FLAGS, cluster=cluster), results=tmp_path)
    assert ds.attrs["params_sha256"] == expected.attrs["params_sha256"]
    assert ds.attrs["n_reruns"] == 0  # nothing in use was closed
    assert at_first == [1]
    assert ds.attrs["n_workers"] == 4


def test_scaling_by_others__a_synchronous_run_goes_on_with_the_same_bits(
    expected, tiny, tmp_path
) -> None:
    with local_cluster(1) as cluster:
        settings = {"kind": "address", "address": cluster.scheduler_address}
        with scaled_at(cluster, (10, 3), (100, 1), (150, 3), (220, 2)) as done:
            config = tiny(**FLAGS, cluster=settings | {"workers": 4})
            ds = train(config, results=tmp_path)
    assert [n for _, n in done][:3] == [3, 1, 3]
    assert len(set(ds.worker.values.tolist())) >= 3
    assert ds.attrs["params_sha256"] == expected.attrs["params_sha256"]
    assert ds.sizes["update"] == expected.sizes["update"]


def test_scaling_by_others__an_asynchronous_run_goes_on_and_replays(
    tiny, tmp_path
) -> None:
    flags = FLAGS | {"budget": {"steps": 150}, "mode": "async"}
    with local_cluster(1) as cluster:
        settings = {"kind": "address", "address": cluster.scheduler_address}
        with scaled_at(cluster, (5, 3), (60, 1), (90, 2)) as done:
            config = tiny(**flags, cluster=settings | {"workers": 3})
            ds = train(config, results=tmp_path)
    assert [n for _, n in done][:2] == [3, 1]
    assert ds.attrs["stop_reason"] == "budget: steps"
    assert len(set(ds.worker.values.tolist())) > 1
    pairs = zip(ds.update_node.values, ds.update_step.values, strict=True)
    assert sorted(pairs) == [(n, k) for n in range(4) for k in range(1, 151)]
    assert replay(ds.attrs["store"])["matches"]


def test_adapt__an_asynchronous_run_grows_and_replays(tiny, at_first, tmp_path) -> None:
    flags = FLAGS | {"budget": {"steps": 250}, "mode": "async"}
    cluster = {"kind": "local", "adapt": [1, 3]}
    ds = train(tiny(**flags, cluster=cluster), results=tmp_path)
    assert at_first == [1]
    assert len(set(ds.worker.values.tolist())) == 3
    assert replay(ds.attrs["store"])["matches"]


def test_only__falls_back_to_other_workers_when_its_own_are_gone() -> None:
    with (
        local_cluster(2) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        config = ClusterConfig(kind="address", address=client.scheduler.address)
        named = config.model_copy(update={"only": ("1",)})
        assert list(Cluster(client, named).workers().values()) == ["1"]
        cluster.scale(1)
        (left,) = _when(lambda: Cluster(client, config).workers().values(), 1)
        assert left == "0"
        assert Cluster(client, named).wait_for_workers() == list(
            Cluster(client, config).workers()
        )
        client.retire_workers(close_workers=True)
        nobody = named.model_copy(update={"start_timeout_s": 0.5})
        _when(lambda: Cluster(client, config).workers(), 0)
        with pytest.raises(RuntimeError, match=r"`cluster` must have at least 1 w"):
            Cluster(client, nobody).wait_for_workers()


def test_fetch__an_answer_that_left_with_its_worker_is_not_waited_for() -> None:
    with (
        local_cluster(1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        future = client.submit(sum, [1, 2], pure=False)
        assert fetch(client, [future]) == [3]
        os.kill(cluster.workers[0].process.pid, signal.SIGKILL)  # hands nothing over
        cluster.scale(0)
        _when(lambda: cluster.scheduler.workers, 0)
        with pytest.raises(AnswerLost, match=r"within 0\.5 s"):
            fetch(client, [future], 0.5)


def test_want__is_met_within_the_bounds_and_no_busy_worker_is_closed() -> None:
    with (
        local_cluster(1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        often = {"interval": "100ms", "wait_count": 2}
        bounds = cluster.adapt(Wanted, minimum=1, maximum=2, **often)

        def hold(limit: float = WAIT_S) -> bool:
            Event("held").set()
            return Event("release").wait(timeout=limit)

        opened = Cluster(client, ClusterConfig(), bounds)
        opened.want(9)
        _when(opened.workers, 2)
        last = list(opened.workers())[-1]
        task = client.submit(hold, workers=[last], pure=False)
        Event("held", client=client).wait(timeout=WAIT_S)
        opened.want(0)
        (left,) = _when(opened.workers, 1)
        assert left == last
        Event("release", client=client).set()
        assert task.result(timeout=WAIT_S)


def test_want__of_a_cluster_of_fixed_size_is_ignored() -> None:
    with open_cluster(ClusterConfig(workers=1, dashboard=False)) as cluster:
        cluster.want(3)
        assert len(cluster.workers()) == 1
        assert adapt(cluster, None) is None


def test_want__tells_the_kubernetes_operator_a_new_minimum() -> None:
    class Operator:
        def adapt(self, **bounds: int) -> None:
            told.append((bounds["minimum"], bounds["maximum"]))

    told: list[tuple[int, int]] = []
    bounds = OperatorBounds(Operator(), 1, 4)
    for n in (3, 9, 0):
        bounds.want(n)
    assert told == [(1, 4), (3, 4), (4, 4), (1, 4)]


def _when(workers, n: int):
    """The workers, as soon as there are ``n`` of them."""
    deadline = time.monotonic() + WAIT_S
    while len(workers()) != n:
        assert time.monotonic() < deadline, f"{workers()} are not {n}"
        time.sleep(0.1)
    return workers()
