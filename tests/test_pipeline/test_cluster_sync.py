"""Synchronous runs on real clusters: one result, whatever happens to the workers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

from pipeline.replay import replay
from pipeline.train import train

pytestmark = pytest.mark.cluster

FLAGS = {"budget": {"steps": 60}, "eval_every": 20, "delays": {1: 0.01}}


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory) -> xr.Dataset:
    flags = FLAGS | {"delays": {}}
    return train(tiny(**flags), results=tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_sync__has_the_hash_of_one_process_on_1_and_2_workers(
    n_workers, expected, tiny, shared, tmp_path
) -> None:
    config = tiny(**FLAGS, cluster=shared | {"workers": n_workers})
    ds = train(config, results=tmp_path)
    for name in ("run_id", "params_sha256", "n_samples", "bytes_moved"):
        assert ds.attrs[name] == expected.attrs[name]
    for name in ("score_losses", "test_accuracy", "train_loss", "best_params"):
        np.testing.assert_array_equal(ds[name], expected[name])
    assert ds.attrs["n_workers"] == n_workers == len(ds.attrs["worker_names"])
    assert ds.attrs["n_reruns"] == 0


def test_sync__has_the_same_hash_on_4_workers_of_its_own(
    expected, tiny, tmp_path
) -> None:
    seen = []
    config = tiny(**FLAGS, cluster={"kind": "local", "workers": 4})
    ds = train(config, results=tmp_path, progress=seen.append)
    assert ds.attrs["params_sha256"] == expected.attrs["params_sha256"]
    assert ds.attrs["n_workers"] == 4
    assert len(set(ds.worker.values.tolist())) == 3  # three blocks
    assert seen[-1].dashboard
    assert ":8787" not in seen[-1].dashboard


@pytest.mark.slow
def test_sync__three_killed_worker_processes_change_no_bit(
    expected, tiny, shared, kill_at, tmp_path
) -> None:
    killed = kill_at(8, 25, 42)
    ds = train(tiny(**FLAGS, cluster=shared), results=tmp_path)
    assert len(killed) == 3
    assert ds.attrs["n_reruns"] >= 1
    assert ds.attrs["params_sha256"] == expected.attrs["params_sha256"]
    np.testing.assert_array_equal(ds.score_losses, expected.score_losses)
    assert ds.sizes["update"] == expected.sizes["update"]


@pytest.mark.parametrize(
    "algorithm", [{"kind": "sgd"}, {"kind": "open-es", "population_size": 6}]
)
def test_sync__other_algorithms_agree_with_one_process(
    algorithm, tiny, shared, tmp_path
) -> None:
    here = train(tiny(algorithm=algorithm), results=tmp_path / "here")
    there = train(tiny(algorithm=algorithm, cluster=shared), results=tmp_path / "there")
    assert here.attrs["params_sha256"] == there.attrs["params_sha256"]
    assert replay(there.attrs["store"])["matches"]


def test_sync__own_worker_gives_a_block_a_worker_that_does_nothing_else(
    expected, tiny, shared, tmp_path
) -> None:
    ds = train(tiny(**FLAGS, own_worker=[1], cluster=shared), results=tmp_path)
    workers = [set(ds.worker.values[ds.update_node.values == n]) for n in range(3)]
    assert len(workers[1]) == 1
    assert workers[0] == workers[2] != workers[1]
    assert ds.attrs["params_sha256"] == expected.attrs["params_sha256"]


def test_sync__stopped_here_it_is_resumed_there(
    expected, tiny, shared, tmp_path
) -> None:
    import threading

    from pipeline.train import resume

    stop = threading.Event()

    def watch(progress) -> None:
        if progress.phase == "training" and progress.round >= 4:
            stop.set()

    config = tiny(**FLAGS, cluster=shared)
    ds = train(config, results=tmp_path, progress=watch, stop=stop)
    assert ds.attrs["status"] == "interrupted"
    cluster = {"kind": "in-process"}
    ds = resume(ds.attrs["run_id"], results=tmp_path, cluster=cluster)
    assert ds.attrs["params_sha256"] == expected.attrs["params_sha256"]


def test_variable__holds_plain_numbers_of_64_kb_at_most(
    tiny, shared, small_cluster, tmp_path
) -> None:
    from distributed import Client

    from blocks.algorithm import LossRecord
    from pipeline.loss_board import BoardError, VariableBoard

    record = LossRecord("mine", 3, tuple(i / 7 for i in range(2048)), tuple(range(99)))
    with Client(small_cluster, set_as_default=False) as client:
        board = VariableBoard("test", "mine", client)
        board.open()
        assert board.publish(record)
        assert not board.publish(LossRecord("mine", 2, (0.0,), (0,)))
        held = small_cluster.scheduler.extensions["variables"].variables["test"]
        assert held["type"] == "msgpack"
        assert len(pickle.dumps(held["value"])) <= 64_000
        assert board.newest(3, 1.0) == record
        with pytest.raises(BoardError, match="must belong to run other; got mine"):
            VariableBoard("test", "other", client).newest(0, 1.0)
        with pytest.raises(BoardError, match=r"must reach version 4 within 0.1 s"):
            board.newest(4, 0.1)
        with pytest.raises(BoardError, match="must be published before it is read"):
            VariableBoard("nobody", "mine", client).newest(0, 0.2)
        board.delete()
        assert (
            client.run_on_scheduler(
                lambda dask_scheduler: len(
                    dask_scheduler.extensions["variables"].variables
                )
            )
            == 0
        )
