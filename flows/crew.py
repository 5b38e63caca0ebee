"""A batch's runs as child flow runs, as many at once as there are workers for."""

from __future__ import annotations

import contextvars
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
from prefect import tags
from prefect.exceptions import PrefectException

from flows.artifacts import publish_markdown, slug
from flows.bar import BarArtifact
from flows.batch import Batch
from flows.errors import may_pass
from flows.lending import Lender, reopened
from flows.outcome import answer_of
from flows.stopping import StopRequest
from flows.train import attended, train_flow
from pipeline.cluster import Cluster, open_cluster
from pipeline.config import ClusterConfig
from pipeline.leases import ClusterLost, RunIsLocked, planned, workers_needed

if TYPE_CHECKING:
    from pipeline.experiment import PlannedRun

AHEAD = 2  # runs that are prepared while their workers are still at work
LOOK_S = 0.5  # between two looks at the cluster
ELSEWHERE_S = 2.0  # between two looks at runs that another process trains
LOSSES = 5  # of the scheduler, with no run completed in between
THREADS = 64  # child flow runs at once, at most


class Crew:
    """Starts runs in order, each in a thread that waits for workers of its own."""

    def __init__(
        self,
        batch: Batch,
        config: ClusterConfig,
        stop: StopRequest,
        bar: BarArtifact,
        retries: int,
    ) -> None:
        self.batch, self.config, self.stop, self.bar = batch, config, stop, bar
        self.retries = retries
        self.lender = Lender(config, stop)
        self._queue: deque[PlannedRun] = deque()
        self._elsewhere: list[PlannedRun] = []
        self._looked = 0.0  # at those elsewhere
        self._ahead: dict[str, PlannedRun] = {}  # started, and without workers yet
        self._children: dict[Future[Any], PlannedRun] = {}
        self._tries: Counter[str] = Counter()
        self._losses = 0
        self._began = False
        self._device = "cpu"
        self._context = contextvars.copy_context()  # with no client that is current

    def run(self, waiting: Sequence[PlannedRun]) -> None:
        """Run all, opening the cluster, and again whenever its scheduler is lost.

        Raises
        ------
        RuntimeError — if the cluster cannot be opened at all.
        """
        self._queue.extend(waiting)
        with ThreadPoolExecutor(THREADS) as threads:
            try:
                self._work_on(threads, self._first_cluster())
                while self._left():
                    opening = reopened(self.config, self.stop, self._device)
                    self._work_on(threads, opening)
            except RuntimeError as err:
                self.lender.end()
                if not self._began:
                    raise
                self._give_up(err)
            finally:
                self.lender.end()

    def _first_cluster(self) -> AbstractContextManager[Cluster | None]:
        if not any(workers_needed(run.config) for run in self._queue):
            return nullcontext()
        if any(run.config.device == "cuda" for run in self._queue):
            self._device = "cuda"
        return open_cluster(self.config, self._device)

    def _left(self) -> bool:
        if self.stop.event.is_set():
            return bool(self._children)
        return bool(self._queue or self._elsewhere or self._children)

    def _work_on(
        self,
        threads: ThreadPoolExecutor,
        opening: AbstractContextManager[Cluster | None],
    ) -> None:
        """Work until all has ended, or the cluster is lost."""
        try:
            with opening as cluster:
                self._began = True
                if cluster is not None:
                    self._open(cluster)
                while self._left():
                    self.lender.look()
                    self._start(threads)
                    self._want()
                    self._collect(LOOK_S)
        except ClusterLost as err:
            self._losses += 1
            if self._losses > LOSSES:
                raise RuntimeError(
                    f"`cluster` must keep its scheduler; lost it {self._losses} times "
                    "with no run completed in between. Run the experiment again on a "
                    "steadier one."
                ) from err
            limit = self.config.start_timeout_s
            self.batch.say(f"{err} Opening it again for up to {limit:g} s.")
        finally:
            self.lender.shut()

    def _open(self, cluster: Cluster) -> None:
        self.lender.open(cluster)
        batch = self.batch
        batch.dashboard = cluster.dashboard
        shown = batch.dashboard or "off"
        batch.say(f"cluster {cluster.address}, Dask dashboard {shown}")
        publish_markdown(
            f"summary-{batch.name}",
            f"# {batch.name}\n\n{len(batch.lines)} of {len(batch.runs)} runs complete. "
            f"Dask dashboard: {shown}",
            f"Summary of {batch.name}",
        )

    def _want(self) -> None:
        """Ask for the workers that runs under way and waiting ones can use."""
        waiting = [*self._queue, *list(self._ahead.values())]
        needed = sum(workers_needed(run.config) for run in waiting)
        self.lender.want(self.lender.n_lent + needed)

    def _start(self, threads: ThreadPoolExecutor) -> None:
        """Start runs, so that some are prepared when workers become free."""
        from pipeline.train import is_locked

        if time.monotonic() - self._looked > ELSEWHERE_S:
            self._looked = time.monotonic()
            back, self._elsewhere = self._elsewhere, []
            self._queue.extend(back)
        limit = max(AHEAD, self.lender.n_free)
        while self._queue and len(self._ahead) < limit and not self.stop.event.is_set():
            run = self._queue.popleft()
            if is_locked(run.config, results=self.batch.results):
                self._elsewhere.append(run)
                continue
            self._ahead[run.name] = run
            context = self._context.copy()
            child = threads.submit(context.run, self._child, run)
            self._children[child] = run

    def _child(self, run: PlannedRun) -> Any:
        """Train one run as a child flow run; returns its final state."""
        child = train_flow.with_options(flow_run_name=run.name)
        lend = partial(self._lend, run) if workers_needed(run.config) else None
        try:
            with (
                attended(self.stop, lend=lend),
                tags(self.batch.name, slug(run.arm)),
            ):
                where = str(self.batch.results)
                return child(planned(run.config), where, return_state=True)
        finally:
            self._ahead.pop(run.name, None)

    @contextmanager
    def _lend(self, run: PlannedRun) -> Iterator[ClusterConfig]:
        self._ahead[run.name] = run
        with self.lender.lend(run) as where:
            self._ahead.pop(run.name, None)
            yield where

    def _collect(self, timeout_s: float) -> None:
        """Note what has ended; waits for the first at most ``timeout_s``."""
        if not self._children:
            self.stop.event.wait(timeout_s)
            return
        done, _ = wait(self._children, timeout_s, return_when=FIRST_COMPLETED)
        for child in done:
            run = self._children.pop(child)
            self._note(run, self._answer(run, child))
            self.bar.show(self.batch.n_ended, len(self.batch.runs))

    def _answer(self, run: PlannedRun, child: Future[Any]) -> Any:
        """How a child ended: a summary line, an error; None = it had not begun."""
        try:
            state = child.result()
            if state.is_cancelled() and state.data is None:
                return None
            return answer_of(state)
        except (
            PrefectException,
            httpx.HTTPError,
        ) as err:  # the run is kept all the same
            lost = RuntimeError(f"Prefect did not keep how this run ended: {err}")
            return self.batch.kept(run) or lost

    def _note(self, run: PlannedRun, answer: Any) -> None:
        if answer is None:
            return
        if isinstance(answer, ClusterLost):  # no try of the run's own
            self._queue.appendleft(run)
        elif isinstance(answer, RunIsLocked):
            self._elsewhere.append(run)
        elif not isinstance(answer, BaseException):
            self._losses = 0
            self.batch.note(run, answer)
        else:
            self.batch.note(run, answer)
            self._tries[run.name] += 1
            if may_pass(answer) and self._tries[run.name] <= self.retries:
                self._queue.append(run)

    def _give_up(self, error: BaseException) -> None:
        """Let what is under way end, and note why the rest is not run."""
        while self._children:
            self._collect(LOOK_S)
        for run in [*self._queue, *self._elsewhere, *self._ahead.values()]:
            if run.name not in self.batch.lines and not self.stop.event.is_set():
                self.batch.note(run, error)
        self._queue.clear()
        self._elsewhere.clear()
