"""Prefect flow: a whole experiment, one child flow run for each of its runs."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, tags
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed

from flows.artifacts import (
    BarArtifact,
    add_tags,
    markdown_table,
    parameter,
    publish_markdown,
    publish_table,
    slug,
)
from flows.compare import compare_flow
from flows.environment import default_results
from flows.outcome import diverged
from flows.stopping import StopRequest, stop_on_signals
from flows.train import attended, train_flow
from pipeline.cluster import Cluster, open_cluster
from pipeline.config import ClusterConfig
from pipeline.leases import Leases, placed, workers_needed

if TYPE_CHECKING:
    from pipeline.experiment import PlannedRun

ELSEWHERE_S = 2.0  # between two looks at a run that another process trains
Say = Callable[[str], None]


@dataclass(slots=True)
class Batch:
    """What has become of an experiment's runs, by name."""

    name: str
    results: Path
    say: Say
    runs: tuple[PlannedRun, ...]
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    errors: dict[str, BaseException] = field(default_factory=dict)

    def note(self, run: PlannedRun, answer: Any) -> None:
        """Keep a run's summary line, or why there is none."""
        if isinstance(answer, BaseException):
            self.errors[run.name] = answer
            text = f"failed: {answer}"
        else:
            self.errors.pop(run.name, None)
            self.lines[run.name] = answer
            accuracy = answer["test_accuracy"]
            shown = "–" if accuracy is None else f"{accuracy:.4f}"
            text = (
                f"{answer['status']}, test accuracy {shown} "
                f"in {answer['wall_time_s']:.1f} s"
            )
        self.say(f"[{self.n_ended}/{len(self.runs)}] {run.name}: {text}")

    @property
    def n_ended(self) -> int:
        """Runs that are complete or have failed."""
        return len(self.lines) + len(self.errors)

    def row(self, run: PlannedRun) -> dict[str, Any]:
        """One line of the final table."""
        line = self.lines.get(run.name, {})
        error = self.errors.get(run.name)
        status = line.get("status", "not run" if error is None else "failed")
        return {
            "run": run.name,
            "arm": run.arm,
            "seed": run.seed,
            "status": "complete (before)" if run.name in self.skipped else status,
            "test accuracy": line.get("test_accuracy"),
            "train loss": line.get("train_loss"),
            "wall time s": line.get("wall_time_s"),
            "why": str(error) if error else line.get("stop_reason", ""),
        }


def _run_name() -> str:
    return slug(Path(parameter("experiment")).stem)


@flow(name="experiment", flow_run_name=_run_name)
def experiment_flow(
    experiment: str = "smoke",
    results: str | None = None,
    report: str | None = None,
    workers: int = 2,
    address: str | None = None,
    scheduler_file: str | None = None,
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
    workers : worker processes of the local cluster.
    address, scheduler_file : a running cluster to use instead.
    retries : how often a run is tried again that failed for no fault of its own.

    Returns
    -------
    dict — ``report``, ``rows`` (one a run), ``n_complete``, ``n_skipped``, ``failed``.
    Ends as Failed if no run could be completed, as Cancelled after a signal.
    """
    from pipeline.experiment import load_experiment

    plan = load_experiment(experiment)
    folder = default_results() if results is None else Path(results)
    add_tags("experiment", plan.name)
    batch = Batch(plan.name, folder, get_run_logger().info, plan.runs())
    bar = BarArtifact(f"progress-{plan.name}")
    with stop_on_signals(get_run_logger().warning) as stop:
        waiting = _skip(batch)
        bar.show(batch.n_ended, len(batch.runs))
        if waiting:
            wanted = ClusterConfig(
                kind=_kind(address, scheduler_file),
                workers=workers,
                address=address,
                scheduler_file=scheduler_file,
            )
            with open_cluster(wanted) as cluster:
                crew = Crew(batch, cluster, stop, bar)
                for _ in range(retries + 1):
                    waiting = crew.run(waiting)
    page = folder / f"{plan.name}.html" if report is None else Path(report)
    return _finish(batch, page, stopped=stop.event.is_set())


def _kind(address: str | None, scheduler_file: str | None) -> Any:
    if address:
        return "address"
    return "scheduler-file" if scheduler_file else "local"


def _skip(batch: Batch) -> list[PlannedRun]:
    """Note the runs that are complete; returns the others."""
    from pipeline.runs import open_run, summary
    from pipeline.train import stored

    waiting = []
    for run in batch.runs:
        store = stored(run.config, results=batch.results)
        if store is None:
            waiting.append(run)
            continue
        ds = open_run(store)
        ds.attrs["store"] = str(store)
        batch.skipped.add(run.name)
        batch.note(run, summary(ds))
    return waiting


class Crew:
    """Gives runs to the workers of one cluster, in order, as they become free."""

    def __init__(
        self, batch: Batch, cluster: Cluster, stop: StopRequest, bar: BarArtifact
    ) -> None:
        self.batch, self.cluster, self.stop, self.bar = batch, cluster, stop, bar
        self.leases = Leases(lambda: list(cluster.workers().values()))

    def run(self, waiting: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Run each once; returns those that may be tried again."""
        from pipeline.train import RunIsLocked

        again: list[PlannedRun] = []
        with ThreadPoolExecutor(max(self.cluster.config.workers, 1)) as threads:
            futures: dict[Future[Any], PlannedRun] = {}
            for run in waiting:
                names = self._lease(run)
                if not names:
                    break
                context = contextvars.copy_context()
                future = threads.submit(context.run, self._child, run, names)
                futures[future] = run
                self._collect([f for f in futures if f.done()], futures, again)
            for future in as_completed(list(futures)):
                self._collect([future], futures, again)
        errors = self.batch.errors
        self._wait_for([r for r in again if isinstance(errors[r.name], RunIsLocked)])
        return [] if self.stop.event.is_set() else again

    def _lease(self, run: PlannedRun) -> tuple[str, ...]:
        while not self.stop.event.is_set():
            names = self.leases.take(workers_needed(run.config))
            if names:
                return names
        return ()

    def _collect(
        self,
        done: Sequence[Future[Any]],
        futures: dict[Future[Any], PlannedRun],
        again: list[PlannedRun],
    ) -> None:
        for future in done:
            run = futures.pop(future)
            answer = future.result()
            self.batch.note(run, answer)
            if isinstance(answer, RuntimeError | OSError):
                again.append(run)
            self.bar.show(self.batch.n_ended, len(self.batch.runs))

    def _child(self, run: PlannedRun, names: tuple[str, ...]) -> Any:
        """Train one run as a child flow run; its summary line or its error."""
        config = placed(run.config, names, self.cluster.address)
        child = train_flow.with_options(flow_run_name=run.name)
        try:
            with attended(self.stop), tags(self.batch.name, slug(run.arm)):
                state = child(config, str(self.batch.results), return_state=True)
            return state.result(raise_on_failure=False)
        finally:
            self.leases.give_back(names)

    def _wait_for(self, runs: list[PlannedRun]) -> None:
        """Wait while another process trains some runs."""
        from pipeline.train import is_locked

        waiting = list(runs)
        while waiting and not self.stop.event.is_set():
            locked = [
                run
                for run in waiting
                if is_locked(run.config, results=self.batch.results)
            ]
            if len(locked) == len(waiting):
                self.stop.event.wait(ELSEWHERE_S)
            waiting = locked


def _finish(
    batch: Batch, page: Path, *, stopped: bool
) -> dict[str, Any] | State[dict[str, Any]]:
    """Publish the table and the comparison; the flow run's answer."""
    rows = [batch.row(run) for run in batch.runs]
    stores = [line["store"] for line in batch.lines.values() if _usable(line)]
    answer: dict[str, Any] = {
        "experiment": batch.name,
        "report": None,
        "rows": rows,
        "n_complete": len(stores),
        "n_skipped": len(batch.skipped),
        "failed": {name: str(error) for name, error in batch.errors.items()},
    }
    if stores:
        answer["report"] = compare_flow(stores, str(page), str(batch.results))["report"]
    publish_table(f"runs-{batch.name}", rows, f"All runs of {batch.name}")
    link = (
        f"[report]({Path(answer['report']).resolve().as_uri()})"
        if answer["report"]
        else "–"
    )
    text = (
        f"# {batch.name}\n\n{len(stores)} of {len(rows)} runs complete, "
        f"{len(batch.skipped)} of them before; {len(batch.errors)} failed. "
        f"Page: {link}\n\n{markdown_table(rows)}"
    )
    publish_markdown(f"summary-{batch.name}", text, f"Summary of {batch.name}")
    if stopped:
        message = "Stopped at checkpoints. Run the experiment again to go on."
        return Cancelled(message=message, data=answer)
    if batch.errors and not stores:
        first = next(iter(batch.errors.values()))
        return Failed(message=f"no run could be completed: {first}", data=answer)
    return answer


def _usable(line: dict[str, Any]) -> bool:
    return line["status"] != "interrupted" and not diverged(line)


def run_experiment(experiment: str, say: Say, **parameters: Any) -> dict[str, Any]:
    """Run :func:`experiment_flow` in this process with a clean Ctrl-C.

    Raises
    ------
    Exception — whatever kept the experiment from running at all.
    KeyboardInterrupt — after a signal; run it again to go on.
    """
    began = time.monotonic()
    with stop_on_signals(say) as stop:
        state = experiment_flow(experiment, **parameters, return_state=True)
    answer: Any = state.result(raise_on_failure=False)
    if stop.event.is_set():
        raise KeyboardInterrupt
    if isinstance(answer, BaseException):
        raise answer
    return {**answer, "seconds": round(time.monotonic() - began, 1)}
