"""Queueing systems and Kubernetes: what is submitted; and a stand-in for SLURM."""

from __future__ import annotations

import os
import shlex
import stat
import sys

import pytest
import yaml
from pydantic import ValidationError

from flows.cli import run as ndcao
from pipeline import cluster_queues
from pipeline.cluster import open_cluster
from pipeline.cluster_config import ClusterConfig, moved
from pipeline.cluster_plan import plan
from pipeline.config import load_config
from pipeline.train import train

JOB = {"cores": 1, "memory": "4GB"}


def slurm(**settings) -> ClusterConfig:
    options = JOB | settings.pop("options", {})
    return ClusterConfig(kind="jobqueue", system="slurm", options=options, **settings)


def lines(script: str) -> tuple[set[str], list[str]]:
    """The directives of a job script, and the words of its worker command."""
    directives = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    (command,) = [line for line in script.splitlines() if "dask_worker" in line]
    return directives, shlex.split(command)


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def pods(**options) -> ClusterConfig:
    given = {"image": "registry/ndcao:1"} | options.pop("options", {})
    return ClusterConfig(kind="kubernetes", options=given, **options)


# -- job scripts ----------------------------------------------------------------------


def test_slurm__script_has_directives_worker_command_and_resource() -> None:
    options = {
        "queue": "gpu",
        "account": "physics",
        "walltime": "02:00:00",
        "job_extra_directives": ["--gres=gpu:1"],
        "job_script_prologue": ["module load python"],
    }
    script = plan(slurm(options=options, resource="GPU"))
    directives, words = lines(script)
    assert script.startswith("#!")
    assert directives >= {
        "#SBATCH -p gpu",
        "#SBATCH -A physics",
        "#SBATCH -t 02:00:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem=4G",
    }
    assert script.index("module load python") < script.index("dask_worker")
    assert words[:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    assert words[3] == "tcp://<scheduler>:8786"
    assert after(words, "--nthreads") == "1"
    assert after(words, "--resources") == "GPU=1"
    assert "--nworkers" not in words


def test_slurm__several_cores_are_as_many_workers_of_one_thread() -> None:
    directives, words = lines(plan(slurm(options={"cores": 8})))
    assert "#SBATCH --cpus-per-task=8" in directives
    assert (after(words, "--nworkers"), after(words, "--nthreads")) == ("8", "1")
    _, words = lines(plan(slurm(options={"cores": 8, "processes": 2})))
    assert (after(words, "--nworkers"), after(words, "--nthreads")) == ("2", "4")


def test_slurm__tls_files_are_in_the_worker_command(tmp_path, monkeypatch) -> None:
    names = ("ca_file", "cert", "key")
    for name in names:
        (tmp_path / name).write_text("")
    monkeypatch.setattr(
        "distributed.Security.get_connection_args", lambda *_: {"ssl_context": None}
    )
    tls = {name: str(tmp_path / name) for name in names}
    _, words = lines(plan(slurm(tls=tls)))
    assert words[3] == "tls://<scheduler>:8786"
    assert after(words, "--protocol") == "tls://"
    for flag, name in zip(("ca-file", "cert", "key"), names, strict=True):
        assert after(words, f"--tls-{flag}") == tls[name]


@pytest.mark.parametrize(
    ("system", "directive"),
    [
        ("pbs", "#PBS -l walltime="),
        ("sge", "#$ -l h_rt="),
        ("lsf", "#BSUB -W "),
        ("moab", "#PBS -l walltime="),
        ("htcondor", "MY.DaskWorkerCores = 1"),
    ],
)
def test_script__of_every_other_system_has_its_directives(system, directive) -> None:
    options = JOB | ({"disk": "1GB"} if system == "htcondor" else {})
    script = plan(ClusterConfig(kind="jobqueue", system=system, options=options))
    assert directive in script
    assert "distributed.cli.dask_worker tcp://<scheduler>:8786" in script


@pytest.mark.parametrize("missing", ["cores", "memory"])
def test_jobqueue__without_cores_or_memory_is_a_clear_error(missing) -> None:
    options = {k: v for k, v in JOB.items() if k != missing}
    config = ClusterConfig(kind="jobqueue", system="slurm", options=options)
    with pytest.raises(ValueError, match=rf"`cluster.options.{missing}` must say"):
        plan(config)


def test_jobqueue__unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"`cluster.options` must be .*wall_time"):
        plan(slurm(options={"wall_time": "1:00"}))


@pytest.mark.parametrize(
    ("config", "extra"), [(slurm(), "jobqueue"), (pods(), "kubernetes")]
)
def test_extra__that_is_not_installed_is_named(config, extra, monkeypatch) -> None:
    for name in ("dask_jobqueue", "dask_kubernetes", "dask_kubernetes.operator"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match=rf'pip install "ndcao\[{extra}\]"'):
        plan(config)


# -- Kubernetes -----------------------------------------------------------------------


def test_kubernetes__manifest_has_image_replicas_command_and_resources() -> None:
    limits = {"limits": {"nvidia.com/gpu": 1}}
    options = {"name": "mine", "resources": limits, "env": {"A": "1"}}
    manifest = yaml.safe_load(plan(pods(options=options, workers=3, resource="GPU")))
    assert manifest["kind"] == "DaskCluster"
    assert manifest["metadata"]["name"] == "mine"
    (worker,) = manifest["spec"]["worker"]["spec"]["containers"]
    (scheduler,) = manifest["spec"]["scheduler"]["spec"]["containers"]
    assert manifest["spec"]["worker"]["replicas"] == 3
    assert worker["image"] == scheduler["image"] == "registry/ndcao:1"
    assert worker["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert after(worker["args"], "--resources") == "GPU=1"
    assert worker["resources"] == limits
    assert worker["env"] == [{"name": "A", "value": "1"}]
    assert scheduler["args"][:2] == ["dask", "scheduler"]


def test_kubernetes__adaptive_clusters_start_with_the_least() -> None:
    manifest = yaml.safe_load(plan(pods(adapt=(2, 6))))
    assert manifest["spec"]["worker"]["replicas"] == 2


def test_kubernetes__the_manifest_shown_is_what_is_created(monkeypatch) -> None:
    import dask_kubernetes.operator as operator

    given = {}
    monkeypatch.setattr(operator, "KubeCluster", lambda **named: given.update(named))
    config = pods(options={"namespace": "science"})
    cluster_queues.start_pods(config)
    assert given["custom_cluster_spec"] == yaml.safe_load(plan(config))
    assert given["namespace"] == "science"
    assert "image" not in given


def test_kubernetes__needs_an_image_and_refuses_tls(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`cluster.options.image` must name"):
        plan(ClusterConfig(kind="kubernetes"))
    tls = {"ca_file": "a", "cert": "b", "key": "c"}
    with pytest.raises(ValueError, match=r"`cluster.tls` must be left out when"):
        cluster_queues.kubernetes_spec(pods(tls=tls))


def test_kubernetes__an_own_manifest_is_used_as_it_is(tmp_path) -> None:
    own = {"kind": "DaskCluster", "metadata": {"name": "own"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    for given in (own, str(tmp_path / "own.yaml")):
        config = ClusterConfig(
            kind="kubernetes", options={"custom_cluster_spec": given}
        )
        assert yaml.safe_load(plan(config)) == own
    with pytest.raises(ValueError, match=r"custom_cluster_spec` must be a manifest"):
        plan(pods(options={"custom_cluster_spec": str(tmp_path / "none.yaml")}))


# -- settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "jobqueue"}, "`cluster.system` must name the queue"),
        ({"adapt": [4, 1]}, r"`cluster.adapt` must be \[least, most\]"),
        ({"kind": "cuda", "adapt": [1, 2]}, "`cluster.adapt` must be left out"),
        (
            {"kind": "address", "address": "tcp://a:1", "adapt": [1, 2]},
            "`cluster.adapt` must be left out",
        ),
    ],
)
def test_settings__that_contradict_each_other_are_refused(settings, message) -> None:
    with pytest.raises(ValidationError, match=message):
        ClusterConfig(**settings)


def test_adapt__workers_are_the_most_unless_they_are_given() -> None:
    assert ClusterConfig(adapt=(1, 5)).workers == 5
    assert ClusterConfig(adapt=(1, 5), workers=3).workers == 3
    again = ClusterConfig.model_validate_json(
        ClusterConfig(adapt=(1, 5)).model_dump_json()
    )
    assert again == ClusterConfig(adapt=(1, 5))


def test_moved__another_kind_drops_what_belongs_to_the_old_one() -> None:
    old = {"kind": "local", "adapt": [1, 4], "workers": 4, "task_timeout_s": 9.0}
    new = {"kind": "address", "address": "tcp://a:1"}
    kept = {"workers": 4, "task_timeout_s": 9.0}
    assert moved(old, new) == kept | new
    assert moved(old, {"workers": 2}) == old | {"workers": 2}


def test_flags__of_another_kind_go_over_a_file_of_an_adaptive_cluster(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("cluster: {kind: local, adapt: [1, 4]}\n")
    flags = {"cluster": {"kind": "address", "address": "tcp://a:1"}}
    cluster = load_config(file, [], flags).cluster
    assert (cluster.kind, cluster.adapt) == ("address", None)


def test_cuda__kind_needs_the_device_too() -> None:
    with pytest.raises(ValueError, match=r"`device` must be cuda when `cluster.kind`"):
        load_config(None, ["cluster.kind=cuda"], {})
    assert load_config(None, ["cluster.kind=cuda", "device=cuda"], {})


# -- the command ----------------------------------------------------------------------


def test_cluster_show__prints_the_script_and_starts_nothing(
    capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("distributed.SpecCluster.__init__", _never)
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump({"cluster": slurm().model_dump(mode="json", exclude={"tls"})})
    )
    set_time = ["--set", "cluster.options.walltime=04:00:00"]
    assert ndcao(["cluster", "show", "-c", str(file), *set_time]) == 0
    directives, _ = lines(capsys.readouterr().out)
    assert "#SBATCH -t 04:00:00" in directives


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ([], "2 worker process(es) of one thread"),
        (["cluster.adapt=[1, 4]"], "1 to 4 worker process(es)"),
        (["cluster.kind=in-process"], "this process computes"),
        (["cluster.kind=address", "cluster.address=tcp://a:1"], "at tcp://a:1"),
    ],
)
def test_cluster_show__says_what_the_other_kinds_start(settings, shown, capsys) -> None:
    flags = [word for one in settings for word in ("--set", one)]
    assert ndcao(["cluster", "show", *flags]) == 0
    assert shown in capsys.readouterr().out


def _never(*_: object, **__: object) -> None:
    raise AssertionError("a cluster was started")


# -- started by a stand-in for SLURM --------------------------------------------------

SBATCH = """#!/bin/sh
cp "$1" {folder}/job.$$
echo submitted >> {folder}/submitted
setsid sh {folder}/job.$$ > {folder}/log.$$ 2>&1 < /dev/null &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -TERM -- "-$1"
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_jobqueue__submits_jobs_that_join_and_cancels_them(
    tiny, sync_run, tmp_path, monkeypatch
) -> None:
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        file = tmp_path / name
        file.write_text(text.format(folder=tmp_path))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    options = {
        "scheduler_options": {"host": "127.0.0.1"},
        "local_directory": str(tmp_path),
    }
    config = slurm(options=options, adapt=(1, 2), start_timeout_s=90)
    with open_cluster(config) as cluster:
        assert len(cluster.workers()) >= 1
        cluster.want(2)
        assert len(cluster.wait_for_workers(2)) == 2
    ds = train(tiny(cluster=config.model_dump()), results=tmp_path)
    assert ds.attrs["params_sha256"] == sync_run[0].attrs["params_sha256"]
    assert len((tmp_path / "submitted").read_text().split()) >= 3


def test_job_script__walltime_and_queue_are_as_written_in_the_file(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "cluster:\n  kind: jobqueue\n  system: slurm\n"
        "  options: {cores: 1, memory: 1GB, walltime: 10:00:00, queue: 0123}\n"
    )
    script = plan(load_config(file).cluster)
    assert "#SBATCH -t 10:00:00" in script
    assert "#SBATCH -p 0123" in script
