"""Checks of what a run may talk to: proxies, Prefect's API, a Dask scheduler."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from flows import proxies
from flows.doctor import Check, describe_memory
from flows.page_guard import OUR_NAMES


def check_proxies() -> Check:
    """Proxies of the environment, which servers of this machine are reached without."""
    seen = proxies.described()
    if not seen:
        return Check("proxies", "ok", "none set")
    direct = f"this machine ({', '.join(OUR_NAMES)}) is reached without"
    return Check("proxies", "note", f"{seen}; {direct}")


def check_prefect(timeout_s: float) -> Check:
    """Prefect's API where one is set; otherwise flows start a temporary server."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Check(
            "prefect api",
            "note",
            "PREFECT_API_URL is not set: flows use the active profile's server, or a "
            "temporary one (10-20 s to start)",
        )
    health = f"{url.rstrip('/')}/health"
    try:
        if not health.startswith(("http://", "https://")):
            raise ValueError("it is not an http address")
        with urllib.request.urlopen(health, timeout=timeout_s) as answer:
            status = answer.status
    except (urllib.error.URLError, OSError, ValueError) as error:
        advice = f"No answer ({error}). Start `prefect server start`, or unset it."
        return Check("prefect api", "fail", url, advice)
    return Check("prefect api", "ok", f"{url} (health {status})")


def check_cluster(
    address: str | None, scheduler_file: Path | None, timeout_s: float
) -> Check:
    """Reach a scheduler within a time limit, and compare its workers with us."""
    if address is None and scheduler_file is None:
        import psutil

        memory = describe_memory(psutil.virtual_memory().available)
        return Check(
            "cluster", "note", f"local workers on demand; {memory} of memory free"
        )
    where = address or str(scheduler_file)
    if scheduler_file is not None and not scheduler_file.is_file():
        advice = f"Start it with: dask scheduler --scheduler-file {scheduler_file}"
        return Check("cluster", "fail", f"no scheduler file {scheduler_file}", advice)
    from distributed import Client

    target = (
        {"address": address} if address else {"scheduler_file": str(scheduler_file)}
    )
    try:
        with Client(timeout=timeout_s, set_as_default=False, **target) as client:
            return _describe_cluster(where, client)
    except (OSError, TimeoutError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = (
            f"No answer within {timeout_s:g} s ({reason[:200]}). Check the address."
        )
        return Check("cluster", "fail", where, advice)


def _describe_cluster(where: str, client: Any) -> Check:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    threads = sum(worker["nthreads"] for worker in workers)
    memory = describe_memory(sum(worker["memory_limit"] for worker in workers))
    names = sorted({name for worker in workers for name in worker.get("resources", {})})
    found = f"{where}: {len(workers)} workers, {threads} threads, {memory}"
    if names:
        found += f", resources {', '.join(names)}"
    if not workers:
        return Check("cluster", "fail", found, f"Start some: dask worker {where}")
    try:
        client.get_versions(check=True)
    except ValueError as error:
        advice = "Versions differ: " + " ".join(str(error).split())[:300]
        return Check("cluster", "warn", found, advice)
    return Check("cluster", "ok", found)
