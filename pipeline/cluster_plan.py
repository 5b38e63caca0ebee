"""What a cluster's settings would start, in words or as the file that is submitted."""

from __future__ import annotations

from pathlib import Path

from pipeline.cluster_config import ClusterConfig
from pipeline.cluster_kinds import security_of, visible_gpus
from pipeline.cluster_queues import job_script, kubernetes_spec
from pipeline.plain_yaml import dump_yaml


def plan(config: ClusterConfig, device: str = "cpu") -> str:
    """Return what would be started; starts and submits nothing.

    A job script for ``jobqueue``, a manifest for ``kubernetes``, else some words.

    Raises
    ------
    RuntimeError — if a package or a file of certificates is missing.
    ValueError — if ``cluster.options`` are not what the kind of cluster needs.
    """
    security = security_of(config)
    if config.kind == "jobqueue":
        return job_script(config, security)
    if config.kind == "kubernetes":
        return dump_yaml(kubernetes_spec(config))
    if config.kind == "in-process":
        return "nothing: this process computes\n"
    tls = "" if security is None else ", over TLS"
    if config.kind == "address":
        return f"nothing: connects to the scheduler at {config.address}{tls}\n"
    if config.kind == "scheduler-file":
        file = Path(str(config.scheduler_file))
        return f"nothing: connects to the scheduler that {file} names{tls}\n"
    if config.kind == "cuda" or device == "cuda":
        gpus = visible_gpus()[: config.workers]
        named = f", on GPU {', '.join(gpus)}" if gpus else ": no GPU is seen here"
        return f"here: a scheduler and {len(gpus)} worker process(es){named}{tls}\n"
    least, most = config.adapt or (config.workers, config.workers)
    count = str(least) if least == most else f"{least} to {most}"
    return f"here: a scheduler and {count} worker process(es) of one thread{tls}\n"
