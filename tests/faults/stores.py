"""Every damage of a data store, a run and a checkpoint, before every reader of it."""

from __future__ import annotations

import dataclasses
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.damage import sample
from tests.faults.report import Case
from tests.faults.samples import Target, make
from tests.faults.worker import damages

ROOT = Path(__file__).parents[2]


def cases(folder: Path, jobs: int, n_sample: int | None, seed: int) -> Iterator[Case]:
    """Yield what came of every damage and reader; of ``n_sample`` damages a target."""
    targets = make(folder)
    work: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    for name, target in targets.items():
        every = damages(target)
        chosen = (
            range(len(every)) if n_sample is None else sample(every, n_sample, seed)
        )
        for number in chosen:
            work.put([name, number])
    found: queue.SimpleQueue[Case | bool] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_serve, args=(targets, folder / f"w{i}", work, found))
        for i in range(jobs)
    ]
    for thread in threads:
        thread.start()
    left = len(threads)
    while left:
        case = found.get()
        if isinstance(case, Case):
            yield case
        elif case:
            left -= 1
        else:
            raise RuntimeError("a process that reads failed; see its traceback")


def _serve(
    targets: dict[str, Target],
    folder: Path,
    work: queue.SimpleQueue[list[Any]],
    found: queue.SimpleQueue[Case | bool],
) -> None:
    """Give a worker process one damage after another; start anew when it dies."""
    done = False
    try:
        while not work.empty():
            with _started(targets, folder) as process:
                _feed(process, work, found)
        done = True
    finally:
        found.put(done)


def _started(targets: dict[str, Target], folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.worker"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    plain = {name: dataclasses.asdict(target) for name, target in targets.items()}
    settings = {"folder": str(folder), "targets": plain}
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == "ready"
    return process


def _feed(
    process: subprocess.Popen[str],
    work: queue.SimpleQueue[list[Any]],
    found: queue.SimpleQueue[Case | bool],
) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    while True:
        try:
            item = work.get_nowait()
        except queue.Empty:
            process.stdin.close()
            return
        process.stdin.write(json.dumps(item) + "\n")
        process.stdin.flush()
        while True:
            began = process.stdout.readline()
            if began == "null\n":
                break
            name, kind, where, reader = json.loads(began)
            answer = process.stdout.readline()
            if not answer:
                found.put(Case(name, kind, reader, "hang", f"{where}: it died"))
                return
            outcome, said = json.loads(answer)
            found.put(Case(name, kind, reader, outcome, f"{where}: {said}"))
