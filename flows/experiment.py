"""Prefect flow: a whole experiment, one child flow run for each of its runs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed

from flows.artifacts import (
    add_tags,
    markdown_table,
    parameter,
    publish_markdown,
    publish_table,
    slug,
)
from flows.bar import BarArtifact
from flows.batch import Batch, Say, cluster_of
from flows.compare import compare_flow
from flows.crew import Crew
from flows.environment import default_results
from flows.outcome import Unfinished, answer_of
from flows.servers import ensure_api
from flows.stopping import stop_on_signals
from pipeline.config import ClusterConfig
from pipeline.outputs import check_folder, may_write


def _run_name() -> str:
    return slug(Path(parameter("experiment")).stem)


@flow(name="experiment", flow_run_name=_run_name)
def experiment_flow(
    experiment: str = "smoke",
    results: str | None = None,
    report: str | None = None,
    cluster: ClusterConfig | None = None,
    retries: int = 1,
) -> dict[str, Any] | State[dict[str, Any]]:
    """Run all of an experiment's runs, side by side while there are workers.

    Runs that are complete are skipped, interrupted ones go on from their checkpoint,
    failed ones are tried again, and what still fails is reported beside the others.

    Parameters
    ----------
    experiment : a YAML file, or the name of a shipped experiment.
    results : folder of run stores; None = ``results`` under ``$NDCAO_HOME``.
    report : the HTML page to write; None = ``<results>/<name>.html``.
    cluster : where all runs compute; None = the cluster that ``$NDCAO_SCHEDULER_FILE``
        names, else the experiment's own, else a local one of 2 workers.
    retries : how often a run is tried again that failed for no fault of its own.

    Returns
    -------
    dict — ``report``, ``rows`` (one a run), ``n_complete``, ``n_skipped``, ``failed``.
    Ends as Failed if no run could be completed, as Cancelled after a signal.
    """
    from pipeline.experiment import load_experiment

    plan = load_experiment(experiment)
    named = default_results() if results is None else results
    folder = check_folder(named, "results")
    named = folder / f"{plan.name}.html" if report is None else report
    page = may_write(named, "report", "report")
    add_tags("experiment", plan.name)
    batch = Batch(plan.name, folder, get_run_logger().info, plan.runs())
    with (
        stop_on_signals(get_run_logger().warning) as stop,
        contextlib.closing(BarArtifact(slug(f"progress-{plan.name}"))) as bar,
    ):
        waiting = batch.skip_complete()
        bar.show(batch.n_ended, len(batch.runs))
        if waiting:
            shared = cluster_of(plan, waiting, cluster)
            Crew(batch, shared, stop, bar, retries).run(waiting)
    target = plan.target.model_dump(exclude_none=True) if plan.target else None
    return _finish(batch, page, target, stopped=stop.event.is_set())


def _finish(
    batch: Batch, page: Path, target: dict[str, float] | None, *, stopped: bool
) -> dict[str, Any] | State[dict[str, Any]]:
    """Publish the table and the comparison; the flow run's answer."""
    rows = [batch.row(run) for run in batch.runs]
    stores = batch.stores()
    answer: dict[str, Any] = {
        "experiment": batch.name,
        "report": None,
        "rows": rows,
        "n_complete": len(stores),
        "n_skipped": len(batch.skipped),
        "failed": {name: str(error) for name, error in batch.errors.items()},
    }
    publish_table(f"runs-{batch.name}", rows, f"All runs of {batch.name}")
    compared = batch.stores(diverged_too=True)
    if compared:
        answer["report"] = compare_flow(
            *(compared, str(page), str(batch.results)),
            target=target,
            left_out=batch.without_store(),
        )["report"]
    link = (
        f"[report]({Path(answer['report']).resolve().as_uri()})"
        if answer["report"]
        else "–"
    )
    text = (
        f"# {batch.name}\n\n{len(stores)} of {len(rows)} runs complete, "
        f"{len(batch.skipped)} of them before; {len(batch.errors)} failed. "
        f"Page: {link}. Dask dashboard while it ran: {batch.dashboard or 'none'}"
        f"\n\n{markdown_table(rows)}"
    )
    publish_markdown(f"summary-{batch.name}", text, f"Summary of {batch.name}")
    if stopped:
        message = "Stopped at checkpoints. Run the experiment again to go on."
        return Cancelled(message=message, data=Unfinished(message, answer))
    if batch.errors and not stores:
        first = next(iter(batch.errors.values()))
        message = f"no run could be completed: {first}"
        return Failed(message=message, data=Unfinished(message, answer))
    return answer


def run_experiment(experiment: str, say: Say, **parameters: Any) -> dict[str, Any]:
    """Run :func:`experiment_flow` in this process with a clean Ctrl-C.

    Raises
    ------
    Exception — whatever kept the experiment from running at all.
    KeyboardInterrupt — after a signal; run it again to go on.
    """
    began = time.monotonic()
    ensure_api()
    with stop_on_signals(say) as stop:
        state = experiment_flow(experiment, **parameters, return_state=True)
    answer = answer_of(state)
    if stop.event.is_set():
        raise KeyboardInterrupt
    if isinstance(answer, BaseException):
        raise answer
    return {**answer, "seconds": round(time.monotonic() - began, 1)}
