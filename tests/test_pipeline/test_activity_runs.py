"""Activity perturbation in the harness: on replicas and pipelined, the same bits."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from pipeline.config import validate_config
from pipeline.replay import replay
from pipeline.train import resume, train

FLAGS = {
    "algorithm": {"kind": "activity-perturbation", "step_size": 0.03},
    "model": {"name": "mlp", "hidden": [9, 7]},
    "loss_samples": 50,
    "batch_size": 5,  # two or three waves a shard
    "blocks": "by_layer",
    "budget": {"steps": 24},
    "eval_every": 12,
}
FORMS = {"replicas": {}, "pipelined": {"pipelined": True}}


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    return train(tiny(**FLAGS), results=tmp_path_factory.mktemp("expected"))


def test_forms__have_the_same_bits_in_one_process(expected, tiny, tmp_path) -> None:
    ds = train(tiny(**FLAGS, pipelined=True), results=tmp_path)
    for name in ("run_id", "params_sha256", "n_samples"):
        assert ds.attrs[name] == expected.attrs[name]
    for name in ("score_losses", "test_accuracy", "train_loss"):
        np.testing.assert_array_equal(ds[name], expected[name])


def test_run__learns_from_losses_alone(tiny, tmp_path) -> None:
    more = {"loss_samples": 500, "batch_size": 2000, "budget": {"steps": 100}}
    ds = train(tiny(**FLAGS | more), results=tmp_path)
    assert ds.train_loss.values[-1] < 0.5 * ds.train_loss.values[0]
    assert ds.n_loss_evals.values[-1] == 2 * 100
    assert ds.n_gradient_evals.values[-1] == 0


@pytest.mark.parametrize(
    "model",
    [{"name": "lenet"}, {"name": "cifar_cnn"}],
)
def test_forms__agree_on_convolutional_networks(model, tmp_path) -> None:
    shas = set()
    for form in FORMS.values():
        flags = FLAGS | {"model": model, "budget": {"steps": 2}, "loss_samples": 40}
        config = validate_config(
            flags | form | {"dataset": "digits", "cluster": {"kind": "in-process"}}
        )
        ds = train(config, results=tmp_path / str(len(shas)))
        shas.add(ds.attrs["params_sha256"])
    assert len(shas) == 1


@pytest.mark.cluster
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_workers", [1, 2])
def test_sync__has_the_hash_of_one_process_on_1_and_2_workers(
    n_workers, form, expected, tiny, shared, tmp_path
) -> None:
    cluster = shared | {"workers": n_workers}
    ds = train(tiny(**FLAGS, **FORMS[form], cluster=cluster), results=tmp_path)
    for name in ("run_id", "params_sha256", "n_samples"):
        assert ds.attrs[name] == expected.attrs[name]
    np.testing.assert_array_equal(ds.score_losses, expected.score_losses)
    assert len(set(ds.worker.values.tolist())) == n_workers
    if form == "replicas":
        assert ds.attrs["bytes_moved"] == expected.attrs["bytes_moved"]


@pytest.mark.cluster
def test_pipelined__moves_equally_many_bytes_on_1_and_2_workers(
    tiny, shared, tmp_path
) -> None:
    moved = set()
    for n_workers in (1, 2):
        config = tiny(**FLAGS, pipelined=True, cluster=shared | {"workers": n_workers})
        moved.add(train(config, results=tmp_path / str(n_workers)).attrs["bytes_moved"])
    assert len(moved) == 1


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("form", FORMS)
def test_sync__two_killed_worker_processes_change_no_bit(
    form, tiny, shared, kill_at, tmp_path
) -> None:
    flags = FLAGS | {"budget": {"steps": 60}, "delays": {1: 0.02}} | FORMS[form]
    whole = train(tiny(**flags | {"delays": {}}), results=tmp_path / "whole")
    killed = kill_at(8, 30)
    ds = train(tiny(**flags, cluster=shared), results=tmp_path / "killed")
    assert len(killed) == 2
    assert ds.attrs["n_reruns"] >= 1
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]


def replays(ds) -> bool:
    line = replay(ds.attrs["store"])
    return line["matches"] and line["losses_match"]


def test_async__on_a_virtual_clock_replays_from_its_record(tiny, tmp_path) -> None:
    config = tiny(**FLAGS, mode="async", delays={1: 0.1}, own_worker=[1])
    ds = train(config, results=tmp_path)
    assert (np.ptp(ds.score_steps.values, axis=1) > 0).any()
    assert replays(ds)


@pytest.mark.cluster
@pytest.mark.parametrize("form", FORMS)
def test_async__with_a_delayed_block_is_stale_and_replays_from_its_record(
    form, tiny, shared, tmp_path
) -> None:
    flags = FLAGS | {"mode": "async", "delays": {1: 0.05}} | FORMS[form]
    ds = train(tiny(**flags, cluster=shared), results=tmp_path)
    assert ds.attrs["stop_reason"] == "budget: steps"
    assert (np.ptp(ds.score_steps.values, axis=1) > 0).any()
    assert replays(ds)


@pytest.mark.cluster
def test_async_pipelined__other_blocks_do_not_wait_for_a_delayed_one(
    tiny, shared, tmp_path
) -> None:
    flags = FLAGS | {"mode": "async", "pipelined": True, "delays": {2: 0.2}}
    ds = train(tiny(**flags, own_worker=[2], cluster=shared), results=tmp_path)
    steps = [int((ds.update_node.values == node).sum()) for node in range(3)]
    assert steps[2] < min(steps[:2])
    versions = ds.score_version.values
    assert versions.tolist() == list(range(len(versions)))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("form", FORMS)
def test_async__a_killed_worker_process_leaves_a_run_that_replays(
    form, tiny, shared, kill_at, tmp_path
) -> None:
    flags = FLAGS | {"mode": "async", "budget": {"steps": 60}, "delays": {1: 0.02}}
    killed = kill_at(10)
    ds = train(tiny(**flags | FORMS[form], cluster=shared), results=tmp_path)
    assert killed
    assert ds.attrs["n_reruns"] >= 1
    assert ds.attrs["status"] == "complete"
    assert replays(ds)


@pytest.mark.slow
@pytest.mark.cluster
def test_async__outlives_the_death_of_all_workers_at_once(
    tiny, shared, kill_at, tmp_path
) -> None:
    flags = FLAGS | {"mode": "async", "budget": {"steps": 60}, "delays": {1: 0.02}}
    killed = kill_at(15, every=True)
    ds = train(tiny(**flags, cluster=shared), results=tmp_path)
    assert killed
    assert ds.attrs["status"] == "complete"
    assert replays(ds)


class StopAt:
    """A progress watcher that interrupts the run at a round."""

    def __init__(self, round_: int) -> None:
        self.round, self.event = round_, threading.Event()

    def __call__(self, progress) -> None:
        if progress.phase == "training" and progress.round >= self.round:
            self.event.set()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_resume__goes_on_after_an_interruption(
    mode, form, tiny, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("pipeline.asynchronous.TELL_S", 0.0)
    flags = FLAGS | FORMS[form] | {"mode": mode, "eval_every": 4}
    stop = StopAt(8)
    cut = train(tiny(**flags), results=tmp_path, progress=stop, stop=stop.event)
    assert cut.attrs["status"] == "interrupted"
    ds = resume(cut.attrs["run_id"], results=tmp_path)
    assert ds.attrs["status"] == "complete"
    assert replays(ds)
    if mode == "sync":
        whole = train(tiny(**flags), results=tmp_path / "whole")
        assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_run__that_diverges_stops_and_says_so(mode, form, tiny, tmp_path) -> None:
    algorithm = FLAGS["algorithm"] | {"optimiser": "momentum", "step_size": 1e30}
    flags = FLAGS | {"algorithm": algorithm, "mode": mode} | FORMS[form]
    ds = train(tiny(**flags), results=tmp_path)
    assert ds.attrs["status"] == "diverged"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"algorithm": {"kind": "nd-cao"}, "pipelined": True}, "`pipelined` must be"),
        ({"mode": "async", "staleness": 2, "pipelined": True}, "`staleness` must be"),
    ],
)
def test_settings__that_do_not_go_together_are_refused(more, words, tiny) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**FLAGS | more)


def test_blocks__that_split_a_layer_are_refused(tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="keep each layer whole"):
        train(tiny(**FLAGS | {"blocks": "by_unit:3"}), results=tmp_path)


def test_pipelined__refuses_a_network_that_is_no_chain(tiny, tmp_path) -> None:
    flags = FLAGS | {"model": {"name": "resnet8"}, "pipelined": True}
    with pytest.raises(ValueError, match="keep a layer and its normalisation together"):
        train(tiny(**flags), results=tmp_path)


def test_pipelined__is_not_in_the_id_of_a_synchronous_run(tiny) -> None:
    kept = [tiny(**FLAGS, **form).mathematics() for form in FORMS.values()]
    assert json.dumps(kept[0]) == json.dumps(kept[1])
    free = [
        tiny(**FLAGS, mode="async", **form).mathematics() for form in FORMS.values()
    ]
    assert json.dumps(free[0]) != json.dumps(free[1])


@pytest.mark.cluster
@pytest.mark.parametrize("n_workers", [1, 2])
def test_async__stopped_on_a_cluster_it_is_resumed_on_one(
    n_workers, tiny, shared, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("pipeline.asynchronous.TELL_S", 0.0)
    cluster = shared | {"workers": n_workers}
    flags = FLAGS | {"mode": "async", "eval_every": 4, "budget": {"steps": 60}}
    stop = StopAt(8)
    config = tiny(**flags, delays={1: 0.02}, cluster=cluster)
    cut = train(config, results=tmp_path, progress=stop, stop=stop.event)
    assert cut.attrs["status"] == "interrupted"
    ds = resume(cut.attrs["run_id"], results=tmp_path, cluster=cluster)
    assert ds.attrs["status"] == "complete"
    assert replays(ds)
