"""Clusters whose workers a queueing system or Kubernetes starts; what they submit."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import dask
from distributed import Security

from pipeline.cluster_config import ClusterConfig
from pipeline.marked_yaml import read_marked

PLACE = "<scheduler>:8786"  # in a job script that is only shown
CLASSES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
    "moab": "MoabCluster",
    "oar": "OARCluster",
}
IMAGE = "ghcr.io/dask/dask"  # dask-kubernetes' own, which has neither torch nor ndcao


def _package(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise RuntimeError(
            f"`cluster.kind` {extra} must have its package installed; got {err}. "
            f'Install it with: pip install "ndcao[{extra}]".'
        ) from err


def _resource(config: ClusterConfig) -> list[str]:
    return ["--resources", f"{config.resource}=1"] if config.resource else []


class Queue(NamedTuple):
    """A class of dask-jobqueue and the keyword arguments to call it with."""

    cluster: Any
    options: dict[str, Any]


def queue(config: ClusterConfig, security: Security | None) -> Queue:
    """What starts the jobs of ``config.system``: by default a thread a process.

    Raises
    ------
    RuntimeError — if dask-jobqueue is missing.
    ValueError — if neither ``options`` nor Dask's configuration say how many cores and
        how much memory a job gets.
    """
    module = _package("dask_jobqueue", "jobqueue")
    system = str(config.system)
    options = dict(config.options)
    for name in ("cores", "memory"):
        found = options.get(name) or dask.config.get(f"jobqueue.{system}.{name}", None)
        if found is None:
            raise ValueError(
                f"`cluster.options.{name}` must say what one job gets; got nothing. "
                "For example: --set cluster.options.cores=1 --set "
                "cluster.options.memory=4GB."
            )
        options[name] = found
    if dask.config.get(f"jobqueue.{system}.processes", None) is None:
        options.setdefault("processes", int(options["cores"]))
    extra = options.pop("worker_extra_args", None)
    if extra is None:
        extra = dask.config.get(f"jobqueue.{system}.worker-extra-args", [])
    options["worker_extra_args"] = [*extra, *_resource(config)]
    options["scheduler_options"] = {
        "dashboard_address": ":0",
        **options.get("scheduler_options", {}),
    }
    if security is not None:
        options["security"] = security
    return Queue(getattr(module, CLASSES[system]), options)


def start_jobs(config: ClusterConfig, security: Security | None) -> Any:
    """Start a scheduler here, whose workers are jobs of the queueing system."""
    found = queue(config, security)
    try:
        return found.cluster(**found.options)
    except (TypeError, ValueError) as err:
        raise _bad_options(err) from err


def job_script(config: ClusterConfig, security: Security | None) -> str:
    """Return the script of one job, as it would be submitted; starts nothing."""
    found = queue(config, security)
    ours = set(inspect.signature(_base().__init__).parameters)
    shared = {"interface", "protocol", "security", "config_name"}
    options = {k: v for k, v in found.options.items() if k not in ours - shared}
    if security is not None:
        options.setdefault("protocol", "tls://")
    scheme = options.get("protocol") or "tcp://"
    try:
        job = found.cluster.job_cls(scheme + PLACE, name="<name>", **options)
    except (TypeError, ValueError) as err:
        raise _bad_options(err) from err
    return str(job.job_script())


def _base() -> Any:
    """Return dask-jobqueue's base class of clusters; jobs do not take its arguments."""
    return _package("dask_jobqueue", "jobqueue").JobQueueCluster


def _bad_options(err: Exception) -> ValueError:
    text = str(err).splitlines()[0].rstrip(".")
    return ValueError(
        f"`cluster.options` must be what the class of dask-jobqueue takes; got: {text}."
        " Correct them; its documentation lists them."
    )


SPEC_OPTIONS = (
    "name",
    "image",
    "resources",
    "env",
    "worker_command",
    "scheduler_service_type",
    "idle_timeout",
    "jupyter",
)


def kubernetes_spec(config: ClusterConfig) -> dict[str, Any]:
    """Return the ``DaskCluster`` resource that would be created; creates nothing.

    Raises
    ------
    RuntimeError — if dask-kubernetes is missing.
    ValueError — without an image, or with ``cluster.tls``.
    """
    operator = _package("dask_kubernetes.operator", "kubernetes")
    if config.tls is not None:
        raise ValueError(
            "`cluster.tls` must be left out when `cluster.kind` is kubernetes, whose "
            f"operator connects its pods by tcp://; got {config.tls.cert}. Connect by "
            "`address` to a scheduler that you start with TLS there."
        )
    own = config.options.get("custom_cluster_spec")
    if own is not None:
        return dict(own) if isinstance(own, dict) else _from_file(str(own))
    if not config.options.get("image"):
        raise ValueError(
            "`cluster.options.image` must name a container image with ndcao in it, as "
            f"{IMAGE} has none; got nothing. Build one, then --set "
            "cluster.options.image=registry/name:tag."
        )
    given = {k: v for k, v in config.options.items() if k in SPEC_OPTIONS}
    given.setdefault("name", "ndcao")
    command = given.pop("worker_command", ["dask", "worker", "--nthreads", "1"])
    if isinstance(command, str):
        command = command.split()
    least = config.adapt[0] if config.adapt else config.workers
    spec: dict[str, Any] = operator.make_cluster_spec(
        n_workers=least, worker_command=[*command, *_resource(config)], **given
    )
    for container in spec["spec"]["scheduler"]["spec"]["containers"]:
        if container["args"][0] == "dask-scheduler":  # a command that Dask dropped
            container["args"][:1] = ["dask", "scheduler"]
    return spec


def _from_file(path: str) -> dict[str, Any]:
    try:
        return dict(read_marked(Path(path)).data)
    except (OSError, ValueError) as err:
        raise ValueError(
            "`cluster.options.custom_cluster_spec` must be a manifest, or a YAML file "
            f"of one; got {path}: {err}. Correct the path."
        ) from err


def start_pods(config: ClusterConfig) -> Any:
    """Create the ``DaskCluster`` resource; pods come as the operator starts them."""
    operator = _package("dask_kubernetes.operator", "kubernetes")
    spec = kubernetes_spec(config)
    left_out = (*SPEC_OPTIONS, "custom_cluster_spec")
    rest = {k: v for k, v in config.options.items() if k not in left_out}
    return operator.KubeCluster(custom_cluster_spec=spec, **{"quiet": True, **rest})
