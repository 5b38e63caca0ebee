"""The demo: digits, three ways of training them, one comparison, all in Prefect flows.

``make demo`` and ``ndcao demo`` run this module. It needs no file, no network and no
server: Prefect's temporary one keeps its history in ``.prefect`` beside the results.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import note, out
from flows.environment import default_results, keep_prefect_local
from flows.servers import ensure_api
from flows.stopping import stop_on_signals
from flows.tables import comparison_table

if TYPE_CHECKING:
    from pipeline.config import RunConfig

ND_CAO: dict[str, Any] = {
    "algorithm": {"kind": "nd-cao"},
    "blocks": "by_unit:5",
    "budget": {"steps": 400},
}
METHODS: tuple[dict[str, Any], ...] = (
    {**ND_CAO, "mode": "sync"},
    {**ND_CAO, "mode": "async"},
    {"algorithm": {"kind": "sgd"}, "mode": "sync", "budget": {"steps": 300}},
)


def demo_configs(seeds: int, workers: int, address: str) -> list[RunConfig]:
    """Return every method with every seed, on the cluster at ``address``."""
    from pipeline.config import validate_config

    cluster = {"kind": "address", "address": address, "workers": workers}
    shared = {"dataset": "digits", "experiment": "demo", "cluster": cluster}
    return [
        validate_config({**shared, **method, "seed": seed})
        for method in METHODS
        for seed in range(seeds)
    ]


def run_demo(
    *, seeds: int, workers: int, results: Path, report: Path, again: bool = False
) -> dict[str, Any]:
    """Run the demo and print its table.

    Parameters
    ----------
    seeds : int — seeds of every method.
    workers : int — worker processes of the local cluster.
    results : folder of run stores; runs that exist are not repeated unless ``again``.
    report : the HTML page to write.

    Returns
    -------
    dict — ``report`` (path) and ``rows`` (one a run), as of ``compare_flow``.
    """
    from pipeline.outputs import check_folder, may_write

    may_write(report, "report", "--out")
    check_folder(results, "--results")
    keep_prefect_local()
    started = time.perf_counter()
    note("starting Prefect and a local Dask cluster …")
    from flows.demo_flow import demo_flow

    ensure_api()
    with stop_on_signals(note):
        answer: dict[str, Any] = demo_flow(
            seeds=seeds,
            workers=workers,
            results=str(results),
            report=str(report),
            again=again,
        )
    title = f"digits: {len(METHODS)} methods, {seeds} seeds"
    out.print(comparison_table(answer["rows"], title))
    note(f"curves of both modes: {answer['report']}")
    note(
        f"runs: {results} (ndcao runs)  ·  {time.perf_counter() - started:.0f} s in all"
    )
    return answer


def main() -> None:
    """Run with two seeds on two workers; ``report.html`` is written here."""
    run_demo(seeds=2, workers=2, results=default_results(), report=Path("report.html"))


if __name__ == "__main__":
    main()
