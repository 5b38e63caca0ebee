"""Which cluster a batch takes, and how it lends and asks for workers."""

from __future__ import annotations

import contextlib
import types

import httpx
import pytest
from distributed import KilledWorker
from distributed.comm import CommClosedError

from flows import lending
from flows.batch import Batch, cluster_of
from flows.crew import Crew
from flows.lending import Lender
from flows.stopping import StopRequest
from pipeline.cluster import Cluster
from pipeline.config import ClusterConfig
from pipeline.experiment import load_experiment
from pipeline.leases import ClusterLost, NoLease


@pytest.fixture
def plan_of(home):
    def load(text=""):
        (home / "x.yaml").write_text(f"name: x\nseeds: 2\nbase:\n  {text}\n")
        return load_experiment(home / "x.yaml")

    return load


@pytest.fixture
def chosen(plan_of):
    def choose(text="", given=None):
        plan = plan_of(text or "dataset: digits")
        return cluster_of(plan, plan.runs(), given)

    return choose


def test_cluster__given_then_shared_then_the_files_then_two_local(
    chosen, home, monkeypatch
) -> None:
    own = "cluster: {kind: address, address: 'tcp://there:1', start_timeout_s: 3}"
    assert (chosen().kind, chosen().workers) == ("local", 2)
    assert chosen(own).address == "tcp://there:1"
    monkeypatch.setenv("NDCAO_SCHEDULER_FILE", "s.json")
    assert chosen(own).scheduler_file == "s.json"
    given = ClusterConfig(workers=5)
    assert chosen(own, given) == given


def test_cluster__a_local_one_has_what_any_run_asks_for(chosen) -> None:
    assert chosen("cluster.workers: 4").workers == 4
    assert chosen("own_worker: [0, 1, 2]\n  cluster: {workers: 4}").workers == 4
    assert chosen("cluster: {adapt: [1, 3]}").adapt == (1, 3)


def test_stores__of_diverged_runs_are_compared_and_missing_ones_named(
    plan_of, tmp_path
) -> None:
    plan = plan_of("dataset: digits")
    runs = plan.runs()
    said: list[str] = []
    batch = Batch("x", tmp_path, said.append, runs)
    line = {"test_accuracy": None, "wall_time_s": 1.0, "status": "diverged"}
    line |= {"stop_reason": "diverged: non-finite loss", "store": "here.zarr"}
    batch.note(runs[0], line)
    assert batch.stores() == []
    assert batch.stores(diverged_too=True) == ["here.zarr"]
    assert batch.without_store() == [f"{runs[1].name}: not run to its end"]
    batch.note(runs[1], RuntimeError("worker lost"))
    assert batch.without_store() == [f"{runs[1].name}: failed, worker lost"]


class Scheduler:
    """A cluster with a scheduler that may go, come back, and be asked for workers."""

    address = "tcp://there:1"

    def __init__(self, *names):
        self.config = ClusterConfig(adapt=(1, 4), start_timeout_s=5)
        self.names, self.id, self.wanted = names, "first", []
        self.client = types.SimpleNamespace(sync=lambda *_: self.answer())

    def answer(self):
        if self.id is None:
            raise OSError("no connection")
        return self.id

    def workers(self):
        if self.id is None:
            raise RuntimeError("no connection")
        return {f"tcp://{name}": name for name in self.names}

    def want(self, n):
        self.wanted.append(n)


@pytest.fixture
def lender():
    cluster = Scheduler("a", "b")
    lender = Lender(cluster.config, StopRequest())
    lender.open(cluster)
    return lender, cluster


def test_lend__a_run_has_its_workers_while_it_computes(lender, plan_of) -> None:
    lender, _ = lender
    run = plan_of("dataset: digits").runs()[0]
    with lender.lend(run) as first, lender.lend(run) as second:
        assert (first.only, second.only) == (("a",), ("b",))
        assert (lender.n_lent, lender.n_free) == (2, 0)
    assert lender.n_lent == 0


@pytest.mark.parametrize("new_id", [None, "second"])
def test_lend__an_error_with_the_scheduler_gone_is_no_fault_of_the_run(
    new_id, lender, plan_of
) -> None:
    lender, cluster = lender
    run = plan_of("dataset: digits").runs()[0]
    with pytest.raises(RuntimeError, match="own fault"), lender.lend(run):
        raise RuntimeError("own fault")
    cluster.id = new_id
    with pytest.raises(ClusterLost, match="nobody there"), lender.lend(run):
        raise RuntimeError("nobody there")
    with pytest.raises(ValueError, match="bad setting"), lender.lend(run):
        raise ValueError("bad setting")
    with pytest.raises(ClusterLost):
        lender.look()
    assert lender.n_lent == 0


def test_lend__nobody_waits_when_the_batch_ends(lender, plan_of) -> None:
    lender, _ = lender
    lender.shut()
    lender.end()
    with pytest.raises(NoLease), lender.lend(plan_of("dataset: digits").runs()[0]):
        pytest.fail("there was nothing to lend")


def test_open__a_scheduler_that_has_gone_meanwhile_is_lost() -> None:
    cluster = Scheduler("a")
    cluster.id = None
    with pytest.raises(ClusterLost, match="no connection"):
        Lender(cluster.config, StopRequest()).open(cluster)


@pytest.fixture
def opened(monkeypatch):
    """Stands in for opening a cluster: fails at first; what it was asked for."""
    asked = []

    @contextlib.contextmanager
    def open_cluster(config, device):
        asked.append((config.start_timeout_s, device))
        if len(asked) == 1:
            raise CommClosedError("it went again")
        yield Cluster(client=None, config=config)

    monkeypatch.setattr(lending, "open_cluster", open_cluster)
    return asked


@pytest.mark.parametrize(
    ("settings", "limit_s"),
    [
        ({"kind": "address", "address": "tcp://there:1"}, lending.TRY_S),
        ({"kind": "jobqueue", "system": "slurm"}, 600.0),  # jobs wait in their queue
    ],
)
def test_reopened__tries_until_it_is_there(settings, limit_s, opened) -> None:
    config = ClusterConfig(**settings, start_timeout_s=600)
    with lending.reopened(config, StopRequest(), "cuda") as cluster:
        assert cluster.config == config
    assert opened == [(limit_s, "cuda")] * 2


def test_reopened__gives_up_with_a_reason_when_told_to_stop(opened) -> None:
    stop = StopRequest()
    stop.event.set()
    with (
        pytest.raises(RuntimeError, match="it went again"),
        lending.reopened(ClusterConfig(), stop),
    ):
        pytest.fail("it could not be opened")


@pytest.mark.parametrize("stopped", [False, True])
def test_give_up__names_what_failed_but_not_what_was_stopped(
    stopped, plan_of, tmp_path
) -> None:
    runs = plan_of("dataset: digits").runs()
    batch, stop = Batch("x", tmp_path, [].append, runs), StopRequest()
    crew = Crew(batch, ClusterConfig(), stop, bar=None, retries=0)
    crew._queue.extend(runs)
    if stopped:
        stop.event.set()
    crew._give_up(RuntimeError("no scheduler"))
    assert list(batch.errors) == ([] if stopped else [run.name for run in runs])
    assert len(batch.without_store()) == len(runs)


@pytest.mark.parametrize(
    ("error", "tried_again"),
    [
        (httpx.ReadTimeout("the API was busy"), True),
        (KilledWorker("task", types.SimpleNamespace(address="a"), 3), True),
        (OSError("disk"), True),
        (ValueError("`steps` must be ≥ 1"), False),
    ],
)
def test_note__tries_again_what_may_pass(error, tried_again, plan_of, tmp_path) -> None:
    run, *_ = plan_of("dataset: digits").runs()
    batch = Batch("x", tmp_path, [].append, [run])
    crew = Crew(batch, ClusterConfig(), StopRequest(), bar=None, retries=1)
    crew._note(run, error)
    assert list(crew._queue) == ([run] if tried_again else [])
    crew._queue.clear()
    crew._note(run, error)  # the second try has failed as well
    assert not crew._queue
    assert list(batch.errors) == [run.name]


def test_want__asks_only_for_what_has_changed(lender) -> None:
    lender, cluster = lender
    for n in (3, 3, 2):
        lender.want(n)
    assert cluster.wanted == [3, 2]
