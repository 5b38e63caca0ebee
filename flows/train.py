"""Prefect flow: one training run, as one task that opens its own Dask client."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from flows.artifacts import ProgressArtifact, add_tags, parameter, slug
from flows.environment import default_results
from flows.errors import may_pass
from flows.outcome import Unfinished, answer_of, diverged
from flows.reporting import report_run_task
from flows.servers import ensure_api
from flows.stopping import StopRequest, stop_on_signals
from pipeline.config import RunConfig
from pipeline.leases import Lend, NoLease, RunIsLocked

if TYPE_CHECKING:
    from pipeline.progress import Progress

ProgressCallback = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class Attendant:
    """Who watches a flow run from the same process: a display and a way to stop it."""

    progress: ProgressCallback
    stop: StopRequest
    lend: Lend | None = None  # what gives the run its workers, in a batch


_attendant: ContextVar[Attendant | None] = ContextVar("attendant", default=None)


@contextmanager
def attended(
    stop: StopRequest,
    progress: ProgressCallback | None = None,
    lend: Lend | None = None,
) -> Iterator[None]:
    """Let a stop request and a display of ours attend the training in this context."""
    token = _attendant.set(Attendant(progress or _nothing, stop, lend))
    try:
        yield
    finally:
        _attendant.reset(token)


def _nothing(_: Progress) -> None:
    return None


def _worth_resuming(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Try once more after what may pass, not after what the user must mend."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, NoLease | RunIsLocked) and may_pass(error)


@task(
    name="train",
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=_worth_resuming,
    cache_policy=NO_CACHE,
)
def train_task(config: RunConfig, results: str, again: bool) -> dict[str, Any]:
    """Train, or go on from the last checkpoint of this very run, and summarise it.

    The one retry resumes (unless ``again`` asks for a fresh run).
    """
    from pipeline.runs import summary
    from pipeline.train import train

    artifact = ProgressArtifact(f"progress-{flow_run.name}")
    attendant = _attendant.get()
    with contextlib.closing(artifact), _watched(artifact) as (progress, stop):
        dataset = train(
            config,
            results=results,
            progress=progress,
            again=again,
            stop=stop.event,
            lend=attendant.lend if attendant else None,
        )
        line = summary(dataset)
        artifact.finish(str(line["status"]))
    return line


@contextmanager
def _watched(
    artifact: ProgressArtifact,
) -> Iterator[tuple[ProgressCallback, StopRequest]]:
    """Yield progress callback and stop request: the attendant's, or our own.

    On our own, as in a deployment, a SIGTERM (``prefect flow-run cancel``) first stops
    the run at a checkpoint; then it is sent again, so that Prefect records it.
    """
    attendant = _attendant.get()
    if attendant is not None:
        watcher = attendant

        def both(progress: Progress) -> None:
            artifact(progress)
            watcher.progress(progress)

        yield both, attendant.stop
        return
    with stop_on_signals(get_run_logger().warning) as stop:
        yield artifact, stop
    if stop.signal_number == signal.SIGTERM:
        os.kill(os.getpid(), signal.SIGTERM)


def _run_name() -> str:
    config = RunConfig.model_validate(parameter("config"))
    data = Path(config.dataset).name.removesuffix(".zarr")
    name = f"{config.mode}-{slug(data)}-s{config.seed}"
    kind = config.algorithm.kind
    return name if kind == "nd-cao" else f"{kind}-{name}"


@flow(name="train", flow_run_name=_run_name)
def train_flow(
    config: RunConfig, results: str | None = None, again: bool = False
) -> dict[str, Any] | State[dict[str, Any]]:
    """Train one network and keep the run.

    Parameters
    ----------
    config : the whole configuration, validated when the flow run is created.
    results : folder of run stores; None = ``results`` under ``$NDCAO_HOME``.
    again : train even if this very run exists.

    Returns
    -------
    dict — the summary line of the run (as ``ndcao train --json``). A diverged run ends
    as Failed (named Diverged), a stopped one as Cancelled; both carry the summary.
    """
    data = Path(config.dataset).name.removesuffix(".zarr")
    add_tags(config.mode, data, config.algorithm.kind)
    folder = str(default_results()) if results is None else results
    try:
        line = train_task(config, folder, again)
    except NoLease as err:
        return Cancelled(message=str(err))
    get_run_logger().info(
        "%s: %s, store %s", line["run_id"], line["status"], line["store"]
    )
    reported = report_run_task(line, return_state=True)
    if not reported.is_completed():
        get_run_logger().warning("no report of this run: %s", reported.message)
    return _final_state(line)


def _final_state(line: dict[str, Any]) -> dict[str, Any] | State[dict[str, Any]]:
    if diverged(line):
        message = f"{line['stop_reason']}. The record is in {line['store']}."
        return Failed(name="Diverged", message=message, data=Unfinished(message, line))
    if line["status"] == "interrupted":
        message = f"Stopped at a checkpoint. Go on with: ndcao resume {line['run_id']}"
        return Cancelled(message=message, data=Unfinished(message, line))
    return line


def run_train_flow(
    config: RunConfig,
    results: str,
    *,
    again: bool = False,
    listener: ProgressCallback,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run :func:`train_flow` in this process with a display and a clean Ctrl-C.

    Returns
    -------
    dict — the run's summary line; its status is "interrupted" after a signal.

    Raises
    ------
    Exception — whatever the training raised.
    """
    ensure_api()
    with stop_on_signals(say) as stop, attended(stop, listener):
        state = train_flow(config, results, again, return_state=True)
    answer = answer_of(state)
    if isinstance(answer, BaseException):
        raise answer
    return answer
