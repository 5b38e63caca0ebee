"""Prefect flow: kept runs into one comparison page."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.artifacts import add_tags, parameter
from flows.environment import default_results
from flows.reporting import compare_task


def _run_name() -> str:
    return f"compare-{len(parameter('runs'))}-runs"


@flow(name="compare", flow_run_name=_run_name)
def compare_flow(
    runs: list[str],
    out: str = "report.html",
    results: str | None = None,
    exports: list[str] | None = None,
    target: dict[str, float] | None = None,
    left_out: list[str] | None = None,
) -> dict[str, Any]:
    """Compare runs: a table, curves against every budget, one self-contained page.

    Parameters
    ----------
    runs : run ids, or paths of run stores.
    out : the HTML page to write.
    results : folder in which run ids are looked up; None = ``results`` under
        ``$NDCAO_HOME``.
    exports : files to write the runs to, ending in .nc, .zarr, .csv or .parquet.
    target : ``{"val_accuracy": 0.9}``, what the page takes the time to; None = chosen
        by a rule that the page states.
    left_out : runs without a store, and why: the page says so.

    Returns
    -------
    dict — ``report`` (path of the page), ``exports`` (paths) and ``rows`` (one a run).
    """
    add_tags("compare")
    folder = str(default_results()) if results is None else results
    answer = compare_task(runs, out, folder, exports or [], target, left_out or [])
    get_run_logger().info("comparison of %d runs: %s", len(runs), answer["report"])
    return answer
