"""Clusters started by Dask's own commands: TLS, versions, and code that they lack."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import dask
import pytest
from distributed import Client

from pipeline import cluster_admission
from pipeline.cluster import open_cluster
from pipeline.config import ClusterConfig
from pipeline.train import train

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WAIT_S = 90.0

NO_NDCAO = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "ditable" not in repr(f)]
"""

MODEL = """
from torch import nn

WIDTH = {width}


class Net(nn.Sequential):
    pass


def make(image_shape, n_classes):
    n_inputs = image_shape[0] * image_shape[1] * image_shape[2]
    layers = nn.Linear(n_inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, n_classes)
    return Net(nn.Flatten(), *layers)
"""


def by_file(processes, **settings) -> dict:
    kind = {"kind": "scheduler-file", "scheduler_file": str(processes.file)}
    return kind | {"start_timeout_s": WAIT_S} | settings


# -- TLS ------------------------------------------------------------------------------


def test_tls__a_run_on_dask_commands_with_certificates_gives_the_same_bits(
    tiny, certificates, dask_processes, sync_run, tmp_path
) -> None:
    processes = dask_processes(tls=certificates)
    processes.worker("alice")
    processes.worker("bob")
    assert processes.address.startswith("tls://")
    expected = sync_run[0].attrs["params_sha256"]
    config = tiny(cluster=by_file(processes, tls=certificates))
    ds = train(config, results=tmp_path)
    assert ds.attrs["params_sha256"] == expected
    assert set(ds.attrs["worker_names"]) <= {"alice", "bob"}

    with pytest.raises(RuntimeError, match=r"`cluster.tls` must fit the scheduler at"):
        train(tiny(cluster=by_file(processes)), results=tmp_path / "none")

    # The same files, named to Dask itself instead.
    own = {
        "distributed.comm.tls.ca-file": certificates["ca_file"],
        "distributed.comm.tls.client.cert": certificates["cert"],
        "distributed.comm.tls.client.key": certificates["key"],
    }
    with dask.config.set(own):
        ds = train(tiny(cluster=by_file(processes)), results=tmp_path / "dask-own")
    assert ds.attrs["params_sha256"] == expected


def test_tls__local_processes_use_the_certificates(
    certificates, hidden, listening
) -> None:
    config = ClusterConfig(workers=1, tls=certificates, dashboard=False)
    before = listening()
    with open_cluster(config) as cluster:
        assert cluster.address.startswith("tls://")
        assert all(address.startswith("tls://") for address in cluster.workers())
        hidden(besides=before)
        assert cluster.client.submit(sum, [1, 2]).result(timeout=30) == 3


def test_tls__files_that_are_missing_or_no_certificates_are_named(
    certificates, tmp_path
) -> None:
    missing = certificates | {"key": str(tmp_path / "none.pem")}
    with (
        pytest.raises(RuntimeError, match=r"`cluster.tls.key` must be a file; got .*n"),
        open_cluster(ClusterConfig(tls=missing)),
    ):
        pass
    (tmp_path / "text").write_text("not PEM\n")
    wrong = certificates | {"cert": str(tmp_path / "text")}
    with (
        pytest.raises(RuntimeError, match=r"`cluster.tls` must be PEM files"),
        open_cluster(ClusterConfig(tls=wrong)),
    ):
        pass


@pytest.mark.parametrize("encrypted", [False, True])
def test_cuda__starts_one_worker_a_gpu_which_sees_no_other(
    encrypted, certificates, monkeypatch, hidden, listening
) -> None:
    monkeypatch.setattr("pipeline.cluster_kinds.visible_gpus", lambda: ["3", "5", "6"])
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    tls = certificates if encrypted else None
    config = ClusterConfig(kind="cuda", workers=2, tls=tls, resource="card")

    def sees() -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    before = listening()
    with open_cluster(config, "cuda") as cluster:
        assert cluster.address.startswith("tls" if encrypted else "tcp")
        assert sorted(cluster.client.run(sees).values()) == ["3", "5"]
        assert len(cluster.wait_for_workers(2)) == 2
        hidden(
            besides=before
        )  # as nothing of a local cluster may be reached from elsewhere


# -- code that workers lack -----------------------------------------------------------


def without_ndcao(tmp_path: Path) -> dict[str, str]:
    """Environment of a Python in which none of our packages can be imported."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NO_NDCAO)
    return {"PYTHONPATH": str(folder)}


def test_code__reaches_a_scheduler_and_workers_that_have_none_and_those_that_join(
    tiny, dask_processes, sync_run, tmp_path
) -> None:
    processes = dask_processes(**without_ndcao(tmp_path))
    processes.worker("alice")
    with Client(processes.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WAIT_S)

        def has_ours() -> bool:
            import importlib.util

            return importlib.util.find_spec("pipeline") is not None

        assert client.run_on_scheduler(has_ours) is False
        assert list(client.run(has_ours).values()) == [False]
    expected = sync_run[0].attrs["params_sha256"]
    with open_cluster(ClusterConfig(**by_file(processes))) as cluster:
        ds = train(tiny(cluster=by_file(processes)), results=tmp_path / "one")
        assert ds.attrs["params_sha256"] == expected
        processes.worker("late")
        cluster.wait_for_workers(2)
        late = by_file(processes, only=["late"])
        ds = train(tiny(cluster=late), results=tmp_path / "late")
    assert ds.attrs["worker_names"] == ["late"]
    assert ds.attrs["params_sha256"] == expected


def test_own_model__reaches_workers_that_cannot_import_it_in_its_newest_form(
    tiny, dask_processes, tmp_path, monkeypatch
) -> None:
    here = tmp_path / "mine"
    here.mkdir()
    monkeypatch.syspath_prepend(str(here))
    processes = dask_processes()
    processes.worker("alice")
    base = {"model": {"name": "own_net_of_a_test:make"}}
    for width in (5, 7):
        (here / "own_layers_beside.py").write_text(MODEL.format(width=width))
        whole = "from own_layers_beside import make\n"
        (here / "own_net_of_a_test.py").write_text(whole)
        for name in ("own_net_of_a_test", "own_layers_beside"):
            sys.modules.pop(name, None)
        results = tmp_path / f"w{width}"
        alone = train(tiny(**base), results=results / "here")
        config = tiny(**base, cluster=by_file(processes))
        ds = train(config, results=results / "there")
        assert ds.attrs["params_sha256"] == alone.attrs["params_sha256"]
        assert f"[{width}, 64]" in ds.attrs["layout"]
    processes.worker("late")
    with open_cluster(ClusterConfig(**by_file(processes))) as cluster:
        cluster.wait_for_workers(2)
    late = tiny(**base, cluster=by_file(processes, only=["late"]))
    ds = train(late, results=tmp_path / "late")
    assert ds.attrs["worker_names"] == ["late"]
    assert ds.attrs["params_sha256"] == alone.attrs["params_sha256"]


def test_own_model__another_copy_on_a_worker_is_named(
    tiny, dask_processes, tmp_path, monkeypatch
) -> None:
    here, there = tmp_path / "mine", tmp_path / "theirs"
    for folder, width in ((here, 5), (there, 6)):
        folder.mkdir()
        (folder / "own_net_two.py").write_text(MODEL.format(width=width))
    monkeypatch.syspath_prepend(str(here))
    processes = dask_processes(PYTHONPATH=str(there))
    processes.worker("alice")
    base = {"model": {"name": "own_net_two:make"}}
    with pytest.raises(
        RuntimeError,
        match=r"must run the same `own_net_two` as this process; worker .* has code",
    ):
        train(tiny(**base, cluster=by_file(processes)), results=tmp_path)


# -- versions -------------------------------------------------------------------------


def pretend(monkeypatch, **versions: str) -> None:
    """Make this process believe that it runs other versions than it does."""
    real = cluster_admission.get_versions

    def changed(packages):
        found = real(packages)
        return {**found, "packages": found["packages"] | versions}

    monkeypatch.setattr(cluster_admission, "get_versions", changed)


def test_versions__that_change_results_are_an_error_that_names_them(
    shared, monkeypatch
) -> None:
    pretend(monkeypatch, numpy="1.26.0")
    with (
        pytest.raises(
            RuntimeError,
            match=r"must run what this process runs; worker .* at tcp://.* has numpy "
            r"\d+\.\d+\.\d+, not 1\.26\.0",
        ),
        open_cluster(ClusterConfig(**shared)),
    ):
        pass


def test_versions__that_do_no_harm_are_a_warning(shared, monkeypatch, caplog) -> None:
    pretend(monkeypatch, msgpack="0.1", torch="2.13.0+cu130")
    with (
        caplog.at_level(logging.WARNING, "pipeline.cluster_admission"),
        open_cluster(ClusterConfig(**shared)) as cluster,
    ):
        assert len(cluster.workers()) == 2
    assert "msgpack" in caplog.text
    assert "torch" not in caplog.text


def test_versions__a_worker_that_joins_with_others_is_left_out(
    dask_processes, tmp_path, caplog
) -> None:
    processes = dask_processes()
    processes.worker("alice")
    old = tmp_path / "old"
    (old / "numpy-1.0.dist-info").mkdir(parents=True)
    (old / "numpy-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n"
    )
    with open_cluster(ClusterConfig(**by_file(processes))) as cluster:
        assert list(cluster.workers().values()) == ["alice"]
        processes.environment["PYTHONPATH"] = str(old)
        processes.worker("old")
        cluster.client.wait_for_workers(2, timeout=WAIT_S)
        assert list(cluster.workers().values()) == ["alice"]
    assert "worker old at" in caplog.text
    assert "has numpy 1.0, not" in caplog.text
