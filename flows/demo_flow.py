"""Prefect flow of the demo: one parent, a child flow run for every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import add_tags
from flows.compare import compare_flow
from flows.console import note, progress_display
from flows.demo import demo_configs
from flows.ingest import ingest_flow
from flows.train import run_train_flow
from pipeline.cluster import open_cluster
from pipeline.config import ClusterConfig, RunConfig


@flow(name="demo", flow_run_name="demo-{seeds}-seeds")
def demo_flow(
    seeds: int = 2,
    workers: int = 2,
    results: str = "results",
    report: str = "report.html",
    again: bool = False,
) -> dict[str, Any]:
    """Digits into a store, three methods with some seeds, one comparison.

    Parameters
    ----------
    seeds, workers : seeds of every method; worker processes of the local cluster.
    results, report : folder of run stores; HTML page to write.
    again : repeat runs that exist.

    Returns
    -------
    dict — ``report`` (path of the page) and ``rows`` (one a run).
    """
    add_tags("demo")
    ingest_flow("digits")
    with open_cluster(ClusterConfig(workers=workers, dashboard=False)) as cluster:
        address = cluster.client.scheduler_info()["address"]
        configs = demo_configs(seeds, workers, address)
        stores = [_train(config, results, again=again) for config in configs]
    answer: dict[str, Any] = compare_flow(stores, report, results)
    return answer


def _train(config: RunConfig, results: str, *, again: bool) -> str:
    """Train one run as a child flow run, say how it went, and return its store."""
    title = f"{config.algorithm.kind} {config.mode} seed {config.seed}"
    with progress_display(title) as progress:
        line = run_train_flow(config, results, again=again, listener=progress, say=note)
    if line["status"] == "interrupted":
        raise KeyboardInterrupt
    note(
        f"{title}: {line['status']}, test accuracy {line['test_accuracy']:.4f} "
        f"in {line['wall_time_s']:.1f} s"
    )
    return str(Path(line["store"]))
