"""A batch goes on after kill −9: of its own process, of a worker, of the scheduler."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

import psutil
import pytest

from pipeline.run_store import open_run
from pipeline.runs import CHECKPOINT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LIMIT_S = 90.0
STEPS = 400
BATCH = f"""\
name: tiny
base:
  dataset: digits
  model: {{hidden: [16]}}
  blocks: by_layer
  checkpoint_every_s: 0.1
seeds: 4
budget: {{steps: {STEPS}}}
"""
SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "50",
    "OMP_NUM_THREADS": "1",
}


def until(true, what):
    """Wait for a condition; fails if it does not come."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.02)
    raise AssertionError(f"no {what} in {LIMIT_S:g} s")


@dataclass
class Machines:
    """A scheduler and two workers by Dask's own commands, and what we start on them."""

    folder: object
    environment: dict
    port: int
    scheduler: subprocess.Popen | None = None
    workers: list = field(default_factory=list)
    started: list = field(default_factory=list)

    def start(self, *words, log):
        """Start a Python module as a command in the folder."""
        with (self.folder / log).open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=out,
            )
        self.started.append(process)
        return process

    def start_scheduler(self):
        words = ("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        words = (*words, "--scheduler-file", "scheduler.json")
        self.scheduler = self.start("dask", "scheduler", *words, log="scheduler.log")

    def start_workers(self):
        words = ("--nthreads", "1", "--no-dashboard", "--local-directory", "work")
        words = (*words, "--scheduler-file", "scheduler.json", "--host", "127.0.0.1")
        self.workers = [
            self.start("dask", "worker", *words, log=f"worker{i}.log") for i in range(2)
        ]

    def start_batch(self, results):
        """Start the experiment's command; its answer goes to ``<results>.log``."""
        words = ("experiment", "run", "batch.yaml", "--json", "--results", results)
        return self.start(
            "flows.cli",
            *words,
            "--scheduler-file",
            "scheduler.json",
            log=f"{results}.log",
        )

    def answer_of(self, process, results):
        """What the command printed last, once it has ended well."""
        code = process.wait(timeout=LIMIT_S)
        text = (self.folder / f"{results}.log").read_text()
        assert code == 0, text
        return json.loads(
            [line for line in text.splitlines() if line.startswith("{")][-1]
        )

    def end(self):
        """Leave no process."""
        rest = []
        for process in self.started:
            if process.poll() is None:
                found = psutil.Process(process.pid)
                rest += [*found.children(recursive=True), found]
        for process in reversed(rest):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.started:
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def machines(tmp_path_factory, server_url):
    folder = tmp_path_factory.mktemp("machines")
    (folder / "batch.yaml").write_text(BATCH)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **SETTINGS, "NDCAO_HOME": str(folder)}
    environment |= {"PREFECT_API_URL": server_url}
    machines = Machines(folder, environment, port)
    try:
        machines.start_scheduler()
        until((folder / "scheduler.json").is_file, "scheduler file")
        machines.start_workers()
        yield machines
    finally:
        machines.end()


def stores(machines, results):
    """Run stores of a batch: path → when its last file was written."""
    found = (machines.folder / results / "tiny").glob("*.zarr")
    return {path: (path / "zarr.json").stat().st_mtime_ns for path in found}


def mid_batch(machines, results):
    """Wait until some run is complete and another has a checkpoint; the stores."""

    def reached():
        under_way = list((machines.folder / results / "tiny").glob(f"*{CHECKPOINT}"))
        there = stores(machines, results)
        done = {store.stem for store in there}
        return there and any(
            p.name.removesuffix(CHECKPOINT) not in done for p in under_way
        )

    until(reached, "complete run beside a run with a checkpoint")
    return stores(machines, results)


def outcomes(machines, results):
    """Run id → hash of the final parameters."""
    found = [open_run(path) for path in stores(machines, results)]
    assert all(ds.attrs["status"] == "complete" for ds in found)
    assert all(int(ds["step"][-1]) == STEPS for ds in found)
    return {ds.attrs["run_id"]: ds.attrs["params_sha256"] for ds in found}


@pytest.fixture(scope="module")
def undisturbed(machines):
    """Run ids and hashes of the batch when nothing happens."""
    answer = machines.answer_of(machines.start_batch("undisturbed"), "undisturbed")
    assert answer["n_complete"] == 4
    return outcomes(machines, "undisturbed")


def check(machines, results, answer, complete_before, undisturbed):
    """Nothing is lost, nothing differs, nothing was trained twice."""
    assert outcomes(machines, results) == undisturbed
    assert answer["failed"] == {}
    assert answer["n_complete"] == len(undisturbed) == 4
    now = stores(machines, results)
    assert {path: now[path] for path in complete_before} == complete_before


def test_batch__goes_on_after_its_own_process_was_killed(machines, undisturbed):
    first = machines.start_batch("flow")
    complete = mid_batch(machines, "flow")
    killed_at = time.time()
    first.kill()
    first.wait(timeout=30)
    complete |= stores(machines, "flow")
    answer = machines.answer_of(machines.start_batch("flow"), "flow")
    check(machines, "flow", answer, complete, undisturbed)
    assert answer["n_skipped"] == len(complete)
    begun = [
        open_run(path).attrs["first_update_at_s"] < killed_at
        for path in stores(machines, "flow")
    ]
    assert sum(begun) > len(complete)  # one went on from its checkpoint


def test_batch__goes_on_after_a_worker_was_killed(machines, undisturbed):
    batch = machines.start_batch("worker")
    complete = mid_batch(machines, "worker")
    nanny = psutil.Process(machines.workers[0].pid)
    worker = max(nanny.children(), key=lambda child: child.memory_info().rss)
    worker.send_signal(signal.SIGKILL)
    answer = machines.answer_of(batch, "worker")
    check(machines, "worker", answer, complete, undisturbed)
    assert answer["n_skipped"] == 0
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_batch__goes_on_after_the_scheduler_was_killed(machines, undisturbed):
    batch = machines.start_batch("scheduler")
    complete = mid_batch(machines, "scheduler")
    machines.scheduler.kill()
    machines.scheduler.wait(timeout=30)
    machines.start_scheduler()
    for worker in machines.workers:  # they end by themselves; a supervisor waits
        worker.wait(timeout=LIMIT_S)
    machines.start_workers()
    answer = machines.answer_of(batch, "scheduler")
    check(machines, "scheduler", answer, complete, undisturbed)
    assert answer["n_skipped"] == 0
