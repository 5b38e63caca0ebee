"""The flows on Prefect's temporary server; training itself is stubbed."""

import json
import time
import types
from uuid import UUID

import pytest
import xarray as xr

import pipeline.compare
from pipeline.config import validate_config
from pipeline.progress import Progress

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_api", "home")]

PICTURE = b"\x89PNG\r\n\x1a\n picture"


@pytest.fixture
def training(stub, line, tmp_path, monkeypatch):
    """A stubbed pipeline; ``training.line`` is its summary, ``.calls`` what it saw."""
    (tmp_path / "run.zarr").mkdir()

    state = types.SimpleNamespace(calls=[], errors=[])
    state.line = {**line, "store": str(tmp_path / "run.zarr")}

    def train(config, *, progress, stop, **rest):
        state.calls.append((config, rest))
        if state.errors:
            raise state.errors.pop(0)
        for step in range(1, 4):
            progress(
                Progress(
                    phase="training", round=step, n_rounds=4, loss=1.0, n_workers=2
                )
            )
            time.sleep(0.05)
        return state.line

    stub("pipeline.train", train=train)
    stub("pipeline.runs", summary=dict)
    monkeypatch.setattr(pipeline.compare, "combine_runs", lambda _: xr.Dataset())
    stub("pipeline.curves", curves_png=lambda ds: PICTURE)
    return state


def client():
    from prefect import get_client

    return get_client(sync_client=True)


def artifacts_of(flow_run_id):
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with client() as api:
        found = api.read_artifacts(artifact_filter=wanted)
    return {artifact.type: artifact for artifact in found}


def run_of(state):
    with client() as api:
        return api.read_flow_run(UUID(str(state.state_details.flow_run_id)))


def config_of(**changed):
    return validate_config({"budget": {"steps": 4}, "seed": 3, **changed})


def test_train_flow__name_tags_parameters_and_artifacts(training, monkeypatch):
    import flows.artifacts
    from flows.train import train_flow

    monkeypatch.setattr(flows.artifacts.ProgressArtifact, "every_s", 0.0)
    state = train_flow(config_of(), "kept", return_state=True)
    assert state.is_completed()
    assert state.result() == training.line
    flow_run = run_of(state)
    assert flow_run.name == "sync-digits-s3"
    assert {"sync", "digits", "nd-cao"} <= set(flow_run.tags)
    assert flow_run.parameters["config"]["budget"]["steps"] == 4
    found = artifacts_of(flow_run.id)
    assert set(found) == {"progress", "table", "markdown"}
    assert found["progress"].data == 100.0
    assert found["progress"].description.startswith("complete: training  round 3/4")
    assert json.loads(found["table"].data)[0]["run_id"] == training.line["run_id"]
    page = found["markdown"].data
    assert training.line["store"] in page
    assert "data:image/png;base64,iVBORw0KGgog" in page


def test_train_flow__runs_of_baselines_are_named_after_them(training):
    from flows.train import train_flow

    training.line["status"] = "interrupted"
    config = config_of(algorithm={"kind": "sgd"}, dataset="data/My Set.zarr")
    state = train_flow(config, return_state=True)
    assert run_of(state).name == "sgd-sync-my-set-s3"


@pytest.mark.parametrize(
    ("status", "kind", "name", "said"),
    [
        ("diverged", "FAILED", "Diverged", "diverged: a reason"),
        ("interrupted", "CANCELLED", "Cancelled", "ndcao resume nd-cao-sync-digits"),
    ],
)
def test_train_flow__ends_in_a_state_that_says_how(training, status, kind, name, said):
    from flows.train import run_train_flow, train_flow

    training.line.update(status=status, stop_reason=f"{status}: a reason")
    state = train_flow(config_of(), return_state=True)
    assert (state.type.value, state.name) == (kind, name)
    assert said in state.message
    line = run_train_flow(
        config_of(), "kept", listener=lambda _: None, say=lambda _: None
    )
    assert line["status"] == status


def test_train_flow__the_display_of_the_caller_is_told(training):
    from flows.train import run_train_flow

    training.line["status"] = "interrupted"
    seen = []
    run_train_flow(config_of(), "kept", listener=seen.append, say=lambda _: None)
    assert [progress.round for progress in seen] == [1, 2, 3]


def test_train_task__a_lost_cluster_is_resumed_once(training, monkeypatch):
    import flows.train as module

    training.line["status"] = "interrupted"
    training.errors.append(RuntimeError("the scheduler has gone."))
    quick = module.train_task.with_options(retry_delay_seconds=0)
    monkeypatch.setattr(module, "train_task", quick)
    state = module.train_flow(config_of(), return_state=True)
    assert state.name == "Cancelled"
    assert [rest["again"] for _, rest in training.calls] == [False, False]


def test_train_task__bad_input_is_not_tried_again(training):
    from flows.train import run_train_flow

    training.errors.append(ValueError("`dataset` must be known."))
    with pytest.raises(ValueError, match="must be known"):
        run_train_flow(config_of(), "kept", listener=lambda _: 0, say=lambda _: 0)
    assert len(training.calls) == 1


def test_train_flow__a_wrong_parameter_is_refused_before_anything_runs(training):
    from prefect.exceptions import ParameterTypeError

    from flows.train import train_flow

    with pytest.raises(ParameterTypeError, match="seed"):
        train_flow({"seed": "abc"})
    assert training.calls == []


def test_ingest_flow__store_tags_and_table(home):
    from flows.ingest import ingest_flow

    state = ingest_flow("digits", limit_train=200, return_state=True)
    info = state.result()
    assert info["n_train"] + info["n_val"] == 200
    flow_run = run_of(state)
    assert flow_run.name == "ingest-digits"
    assert {"ingest", "digits"} <= set(flow_run.tags)
    assert info["content_sha256"] in artifacts_of(flow_run.id)["table"].data


def test_ingest_flow__network_errors_are_retried_bad_names_are_not(monkeypatch):
    import flows.ingest as module

    attempts = []

    def flaky(name, **_):
        attempts.append(name)
        if name == "fish":
            raise ValueError("`name` must be known.")
        if len(attempts) < 3:
            raise ConnectionError("no network")
        return {"path": "data/x.zarr", "notes": ()}

    quick = module.ingest_task.with_options(retry_delay_seconds=0)
    monkeypatch.setattr(module, "ingest_task", quick)
    monkeypatch.setattr(module, "ingest_to_dict", flaky)
    assert module.ingest_flow("mnist") == {"path": "data/x.zarr", "notes": ()}
    assert len(attempts) == 3
    attempts.clear()
    with pytest.raises(ValueError, match="must be known"):
        module.ingest_flow("fish")
    assert len(attempts) == 1
