"""A batch on Prefect's temporary server and a real Dask cluster."""

from __future__ import annotations

from uuid import UUID

import pytest
from filelock import FileLock

import pipeline.train
from flows.experiment import experiment_flow
from flows.outcome import answer_of
from flows.stopping import stop_on_signals
from pipeline.cluster import Cluster
from pipeline.config import ClusterConfig
from pipeline.experiment import load_experiment
from pipeline.leases import Leases
from pipeline.run_store import open_run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_api", "home")]

BATCH = """\
name: tiny
base: {dataset: digits, model: {hidden: [4]}, loss_samples: 50, blocks: by_layer}
grid: {algorithm: [nd-cao, sgd]}
seeds: 2
budget: {steps: 6}
"""
WRONG = """\
name: mixed
base: {dataset: digits, model: {hidden: [4]}, loss_samples: 50, blocks: by_layer}
arms:
  - {label: good, settings: {}}
  - {label: bad, settings: {delays: {99: 0.01}}}
budget: {steps: 4}
"""


def client():
    from prefect import get_client

    return get_client(sync_client=True)


def children_of(flow_run_id):
    """Flow runs whose parent is the given one."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterParentFlowRunId,
    )

    wanted = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id])
    )
    with client() as api:
        return api.read_flow_runs(flow_run_filter=wanted)


@pytest.fixture
def batch(home):
    """Return the function that writes and runs an experiment; gives state and id."""

    def start(text, **flags):
        path = home / "batch.yaml"
        path.write_text(text)
        state = experiment_flow(str(path), results="kept", return_state=True, **flags)
        return state, UUID(str(state.state_details.flow_run_id))

    return start


def test_experiment__every_run_is_a_child_and_is_kept_once(batch, home) -> None:
    state, parent = batch(BATCH)
    assert state.is_completed()
    answer = state.result()
    assert not answer["failed"]
    assert [row["status"] for row in answer["rows"]] == ["complete"] * 4
    names = {row["run"] for row in answer["rows"]}
    children = children_of(parent)
    trained = [run for run in children if run.name in names]
    assert {run.name for run in trained} == names
    assert all({"tiny", "digits"} <= set(run.tags) for run in trained)
    assert len([run for run in children if run.name.startswith("compare")]) == 1
    stores = sorted((home / "kept" / "tiny").glob("*.zarr"))
    assert len(stores) == 4
    assert (home / "kept" / "tiny.html").is_file()
    alone = pipeline.train.train(
        load_experiment(home / "batch.yaml")
        .runs()[0]
        .config.model_copy(update={"experiment": "alone"}),
        results=home / "alone",
    )
    there = open_run(home / "kept" / "tiny" / f"{alone.attrs['run_id']}.zarr")
    assert there.attrs["params_sha256"] == alone.attrs["params_sha256"]

    state, parent = batch(BATCH)  # a second time: nothing is left to do
    answer = state.result()
    assert answer["n_skipped"] == answer["n_complete"] == 4
    assert [run.name for run in children_of(parent)] == ["compare-4-runs"]


def test_experiment__a_run_that_fails_does_not_sink_the_batch(batch) -> None:
    state, _ = batch(WRONG)
    assert state.is_completed()
    answer = state.result()
    status = {row["arm"]: row["status"] for row in answer["rows"]}
    assert status == {"good": "complete", "bad": "failed"}
    assert "`delays` must name blocks" in next(iter(answer["failed"].values()))


def test_experiment__waits_for_a_run_that_another_process_trains(
    batch, home, monkeypatch
) -> None:
    batch(BATCH.replace("steps: 6", "steps: 2"))  # makes the folder and the store
    path = home / "batch.yaml"
    path.write_text(BATCH)
    config = load_experiment(path).runs()[0].config
    store = pipeline.train._job(
        config,
        pipeline.train.ensure_store(config.dataset),
        home / "kept",
        again=False,
    ).store
    lock = FileLock(store.parent / f".{store.stem}.lock", thread_local=False)
    lock.acquire(timeout=0)
    asked = []

    def is_locked(*args, **flags):
        answer = real(*args, **flags)
        asked.append(answer)
        lock.release()  # the other process has ended
        return answer

    real = pipeline.train.is_locked
    monkeypatch.setattr(pipeline.train, "is_locked", is_locked)
    state, _ = batch(BATCH)
    assert asked[0]
    assert not state.result()["failed"]
    assert [row["status"] for row in state.result()["rows"]] == ["complete"] * 4


def test_experiment__an_adaptive_cluster_is_asked_for_less_as_runs_end(
    batch, monkeypatch
) -> None:
    wanted = []
    real = Cluster.want

    def want(self, n):
        if self.bounds is not None:  # the batch's, not what a run opens at its address
            wanted.append(n)
        real(self, n)

    monkeypatch.setattr(Cluster, "want", want)
    state, _ = batch(BATCH, cluster=ClusterConfig(adapt=(1, 2)))
    assert not state.result()["failed"]
    assert [row["status"] for row in state.result()["rows"]] == ["complete"] * 4
    assert wanted[0] == 4
    assert wanted[-1] <= 1
    assert wanted == sorted(wanted, reverse=True)


def test_experiment__runs_in_this_process_need_no_cluster(batch, monkeypatch) -> None:
    monkeypatch.setattr("flows.crew.open_cluster", None)
    text = BATCH.replace("by_layer", "by_layer, cluster: {kind: in-process}")
    state, _ = batch(text.replace("[nd-cao, sgd]", "[nd-cao]"))
    assert not state.result()["failed"]
    assert [row["status"] for row in state.result()["rows"]] == ["complete"] * 2


def test_experiment__the_api_refuses_a_cluster_that_makes_no_sense(batch) -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match="kind"):
        experiment_flow("smoke", cluster={"kind": "elsewhere"})
    shown = experiment_flow.parameters.model_dump()["definitions"]["ClusterConfig"]
    assert {"kind", "address", "adapt", "workers"} <= set(shown["properties"])


def test_experiment__when_stopped_nothing_fails_and_the_next_time_goes_on(
    batch, monkeypatch
) -> None:
    text = BATCH.replace("[nd-cao, sgd]", "[nd-cao]").replace("seeds: 2", "seeds: 5")
    real = Leases.take
    with stop_on_signals() as stop:

        def take(self, *args):
            names = real(self, *args)
            if self.n_lent == 2:
                stop.event.set()
            return names

        monkeypatch.setattr(Leases, "take", take)
        state, _ = batch(text.replace("steps: 6", "steps: 2000"))
    assert state.is_cancelled()
    answer = answer_of(state)
    assert answer["failed"] == {}
    found = [row["status"] for row in answer["rows"]]
    assert sorted(found) == ["interrupted"] * 2 + ["not run"] * 3


def test_experiment__what_prefect_forgets_is_taken_from_the_store(
    batch, monkeypatch
) -> None:
    from prefect.exceptions import MissingResult

    from flows.crew import Crew

    real = Crew._child

    def forgetful(self, run):
        real(self, run)
        raise MissingResult("no data")

    monkeypatch.setattr(Crew, "_child", forgetful)
    state, _ = batch(BATCH.replace("[nd-cao, sgd]", "[nd-cao]"), retries=0)
    assert not state.result()["failed"]
    assert [row["status"] for row in state.result()["rows"]] == ["complete"] * 2


def test_experiment__runs_over_tls_on_workers_of_dask_commands(
    batch, home, dask_processes, certificates
) -> None:
    processes = dask_processes(tls=certificates)
    processes.worker("alice")
    processes.worker("bob")
    cluster = ClusterConfig(
        kind="scheduler-file", scheduler_file=str(processes.file), tls=certificates
    )
    state, _ = batch(BATCH, cluster=cluster)
    assert processes.address.startswith("tls://")
    assert not state.result()["failed"]
    assert [row["status"] for row in state.result()["rows"]] == ["complete"] * 4
    used = [open_run(s) for s in (home / "kept" / "tiny").glob("*.zarr")]
    assert {name for ds in used for name in ds.attrs["worker_names"]} <= {
        "alice",
        "bob",
    }
