"""A batch on Prefect's temporary server and a real Dask cluster."""

from __future__ import annotations

from uuid import UUID

import pytest
from filelock import FileLock

import pipeline.train
from flows.experiment import experiment_flow
from pipeline.experiment import load_experiment
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
    assert [row["status"] for row in state.result()["rows"]] == ["complete"] * 4
