"""Other ways to a cluster, and what a user reads when one cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path

import cloudpickle
import pytest
from distributed import Client

from blocks.algorithm import Information, InformationError
from blocks.usercode import UserCodeError
from flows.errors import exit_code, may_pass
from pipeline import cluster as clusters
from pipeline import cluster_kinds
from pipeline.cluster import open_cluster
from pipeline.config import ClusterConfig
from pipeline.remote import Placed
from pipeline.replay import replay
from pipeline.train import resume, train

pytestmark = pytest.mark.cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])

QUICK_S = 30.0  # far below every timeout a run would otherwise wait for


@contextlib.contextmanager
def quickly():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < QUICK_S


@contextlib.contextmanager
def dask_processes(folder: Path):
    """A scheduler and a worker of two threads with a resource, as users start them."""
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    both = ["--scheduler-file", str(file), "--no-dashboard", "--host", "127.0.0.1"]
    worker = ["--no-nanny", "--nthreads", "2", "--local-directory", str(folder)]
    commands = [
        [*dask, "scheduler", *both, "--port", "0"],
        [*dask, "worker", *both, *worker, "--name", "alice", "--resources", "NODE=2"],
    ]
    with (folder / "log").open("wb") as log:
        processes = [
            subprocess.Popen(command, stdout=log, stderr=log) for command in commands
        ]
        try:
            deadline = time.monotonic() + 60
            while not file.exists() or not file.read_text():
                assert processes[0].poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield file, processes
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait(30)


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory):
    with dask_processes(tmp_path_factory.mktemp("dask")) as (file, _):
        yield file


def test_scheduler_file__connects_and_leaves_the_cluster_running(
    tiny, scheduler_file, tmp_path, sync_run
) -> None:
    cluster = {"kind": "scheduler-file", "scheduler_file": str(scheduler_file)}
    ds = train(tiny(cluster=cluster), results=tmp_path)
    assert ds.attrs["params_sha256"] == sync_run[0].attrs["params_sha256"]
    assert ds.attrs["worker_names"] == ["alice"]
    address = json.loads(scheduler_file.read_text())["address"]
    with Client(address, set_as_default=False) as client:
        assert len(client.scheduler_info()["workers"]) == 1


def test_scheduler_file__that_goes_while_it_is_read_is_not_waited_for(
    tmp_path, monkeypatch
) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://127.0.0.1:9"}')
    given = []

    def client(*words, **named):
        given.append((words, sorted(named)))
        file.unlink()
        raise OSError("nobody there")

    monkeypatch.setattr(cluster_kinds, "Client", client)
    config = ClusterConfig(kind="scheduler-file", scheduler_file=str(file))
    with pytest.raises(RuntimeError, match="reachable"), open_cluster(config):
        pytest.fail("nobody is there")
    # Dask waits without limit for a `scheduler_file` that is not there.
    assert given == [
        (("tcp://127.0.0.1:9",), ["security", "set_as_default", "timeout"])
    ]


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("htp://127.0.0.1:8786", r"`cluster.address` must be one such as tcp://.*htp"),
        ("tcp://127.0.0.1", "`cluster.address` must be .*missing port"),
        ("tcp://127.0.0.1:x", "`cluster.address` must be"),
        ("tls://127.0.0.1:8786", "`cluster.tls` must fit"),
        ("tcp://127.0.0.1:9", "`cluster` must be reachable"),
    ],
)
def test_address__that_cannot_be_used_leaves_no_client_to_wait_for(
    address, error, monkeypatch
) -> None:
    made = []

    class Seen(cluster_kinds.Client):
        def __init__(self, *words, **named) -> None:
            made.append(self)
            super().__init__(*words, **named)

    monkeypatch.setattr(cluster_kinds, "Client", Seen)
    config = ClusterConfig(kind="address", address=address, start_timeout_s=0.5)
    wrong = (ValueError, RuntimeError)
    with quickly(), pytest.raises(wrong, match=error), open_cluster(config):
        pytest.fail("nobody is there")
    # Dask would close it at the end of the process, and wait there for two minutes.
    assert [one.status for one in made] == ["closed"]


def test_tasks__go_on_when_all_workers_died_at_them_and_came_back(
    shared, tmp_path
) -> None:
    def die_once(i: int) -> int:
        if not (tmp_path / f"{i}").exists():
            (tmp_path / f"{i}").touch()
            deadline = time.monotonic() + QUICK_S
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with open_cluster(ClusterConfig(**shared, task_timeout_s=QUICK_S)) as cluster:

        def submit(i, address):
            where = {"workers": [address], "allow_other_workers": True}
            return cluster.client.submit(die_once, i, **where, pure=False)

        addresses = cluster.wait_for_workers(2)
        tasks = [(partial(submit, i), address) for i, address in enumerate(addresses)]
        assert Placed(cluster, tasks).answers("answer") == [0, 1]
        assert not set(addresses) & set(cluster.wait_for_workers(2))


class Silent:
    """A client whose scheduler and workers keep their connections and say nothing."""

    status = "running"
    scheduler = property(lambda self: self)

    def sync(self, function, *words):
        return asyncio.run(asyncio.wait_for(function(*words), QUICK_S))

    async def identity(self, n_workers):
        await asyncio.Event().wait()

    async def run(self, function, *words, on_error):
        await asyncio.Event().wait()


def test_cluster__that_does_not_answer_is_waited_for_with_a_limit(
    monkeypatch, caplog
) -> None:
    monkeypatch.setattr(clusters, "ANSWER_S", 0.1)
    variable = types.SimpleNamespace(delete=lambda: None)
    monkeypatch.setattr(clusters, "Variable", lambda *_, **__: variable)
    silent = clusters.Cluster(Silent(), ClusterConfig())
    with quickly():
        with pytest.raises(RuntimeError, match="got no connection"):
            silent.workers()
        silent.forget("loss-of-a-run", print)
    assert "could not delete loss-of-a-run" in caplog.text


def test_address__with_a_resource_and_two_threads_a_worker_replays(
    tiny, scheduler_file, tmp_path
) -> None:
    address = json.loads(scheduler_file.read_text())["address"]
    cluster = {"kind": "address", "address": address, "resource": "NODE"}
    config = tiny(mode="async", budget={"steps": 40}, cluster=cluster)
    ds = train(config, results=tmp_path)
    assert replay(ds.attrs["store"])["matches"]


def test_resource__that_nobody_has_is_a_clear_error_at_once(
    tiny, shared, scheduler_file, tmp_path
) -> None:
    address = json.loads(scheduler_file.read_text())["address"]
    for cluster in (shared, {"kind": "address", "address": address}):
        config = tiny(cluster=cluster | {"resource": "FPGA"})
        with (
            quickly(),
            pytest.raises(RuntimeError, match=r"`cluster.resource` must be .*'FPGA'"),
        ):
            train(config, results=tmp_path)


def test_address__of_nobody_is_a_clear_error_within_the_timeout(tiny, tmp_path) -> None:
    cluster = {"kind": "address", "address": "tcp://127.0.0.1:9", "start_timeout_s": 1}
    with (
        quickly(),
        pytest.raises(RuntimeError, match=r"reachable within 1 s.*tcp://127.0.0.1:9"),
    ):
        train(tiny(cluster=cluster), results=tmp_path)


def test_scheduler_file__that_is_missing_or_stale_is_a_clear_error(
    tiny, tmp_path
) -> None:
    file = tmp_path / "s.json"
    cluster = {"kind": "scheduler-file", "scheduler_file": str(file)}
    config = tiny(cluster=cluster | {"start_timeout_s": 1})
    with pytest.raises(
        RuntimeError, match=r"scheduler_file` must exist; got .*s\.json"
    ):
        train(config, results=tmp_path)
    file.write_text(json.dumps({"address": "tcp://127.0.0.1:9", "id": "Scheduler-1"}))
    with quickly(), pytest.raises(RuntimeError, match="must be reachable within 1 s"):
        train(config, results=tmp_path)
    for content in ("", "{", "[]", "{}"):
        file.write_text(content)
        with pytest.raises(RuntimeError, match="scheduler_file` must name a scheduler"):
            train(config, results=tmp_path)


def test_open_cluster__without_enough_workers_is_a_clear_error(shared) -> None:
    config = ClusterConfig(**shared | {"workers": 3, "start_timeout_s": 0.5})
    with (
        open_cluster(config) as cluster,
        pytest.raises(RuntimeError, match=r"at least 3 worker.*got 2 after 0.5 s"),
    ):
        cluster.wait_for_workers(3)


USER_CODE = """
import multiprocessing
from torch import nn

def loss(logits, targets):
    if multiprocessing.parent_process() is not None:
        raise ArithmeticError("the user's own mistake")
    return nn.functional.cross_entropy(logits, targets, reduction="none")

def factory(image_shape, n_classes):
    if multiprocessing.parent_process() is not None:
        raise ArithmeticError("the user's own mistake")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))
"""


@pytest.fixture
def user_code(small_cluster, shared, tmp_path, monkeypatch) -> str:
    """A module of the user's that this process and the workers can import."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "users_own.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(folder))
    with Client(small_cluster, set_as_default=False) as client:
        client.run(put_on_path, str(folder))
    return "users_own"


def put_on_path(folder: str) -> None:
    sys.path.insert(0, folder)
    sys.modules.pop("users_own", None)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    "flags",
    [
        {"loss": "users_own:loss"},
        {"model": {"name": "users_own:factory"}, "blocks": "all"},
    ],
    ids=["loss", "factory"],
)
def test_a_users_error_in_a_worker__surfaces_as_one_sentence_and_is_not_tried_again(
    flags, mode, tiny, shared, user_code, tmp_path
) -> None:
    config = tiny(mode=mode, cluster=shared, **flags)
    place = r"ArithmeticError: the user's own mistake at users_own\.py, line \d+"
    with quickly(), pytest.raises(UserCodeError, match=place) as caught:
        train(config, results=tmp_path)
    assert str(caught.value).startswith(("`loss` must", "`model` must"))
    assert exit_code(caught.value) == 2
    assert not may_pass(caught.value)


def declare(flags: int) -> None:
    from blocks.nd_cao import NDCAO

    NDCAO.information = Information(flags)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_information_error__surfaces_from_one_worker_and_frees_the_other(
    mode, tiny, shared, small_cluster, tmp_path
) -> None:
    config = tiny(mode=mode, cluster=shared)
    with Client(small_cluster, set_as_default=False) as client:
        one = next(iter(client.scheduler_info()["workers"]))
        client.run(declare, Information.NOTHING.value, workers=[one])
        try:
            with quickly(), pytest.raises(InformationError, match="SHARED_LOSS"):
                train(config, results=tmp_path)
        finally:
            client.run(declare, Information.SHARED_LOSS.value)
    with quickly():
        assert train(config, results=tmp_path).attrs["status"] == "complete"


def test_open_cluster__needs_no_fixed_port_and_listens_to_this_machine_only(
    hidden, listening
) -> None:
    config = ClusterConfig(kind="local", workers=1, dashboard=False)
    before = listening()
    with open_cluster(config) as cluster:
        hidden(besides=before)
        assert cluster.dashboard is None
        link = cluster.client.dashboard_link
        assert ":8787" not in (link or "")
        assert len(cluster.workers()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_scheduler_that_dies__is_a_clear_error_and_the_run_resumes(
    mode, tiny, tmp_path, caplog
) -> None:
    flags = {"mode": mode, "budget": {"steps": 60}, "eval_every": 10}
    with dask_processes(tmp_path) as (file, processes):
        cluster = {"kind": "scheduler-file", "scheduler_file": str(file)}
        config = tiny(**flags, cluster=cluster | {"start_timeout_s": 10})

        def kill_the_scheduler(progress) -> None:
            if progress.round >= 10:
                processes[0].kill()

        with (
            quickly(),
            pytest.raises(RuntimeError, match="must keep its scheduler") as lost,
        ):
            train(config, results=tmp_path, progress=kill_the_scheduler)
    assert " at 0x" not in str(lost.value)
    told = [one for one in caplog.records if one.name == "distributed.client"]
    assert not [one for one in told if one.exc_info]  # no traceback
    (checkpoint,) = tmp_path.rglob("*.npz")
    ds = resume(checkpoint, results=tmp_path, cluster={"kind": "in-process"})
    assert ds.attrs["status"] == "complete"
    assert replay(ds.attrs["store"])["matches"]
