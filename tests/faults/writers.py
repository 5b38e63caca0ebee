"""Every writer killed at every thing that it does to files, and in mid-write.

Afterwards the old content or the new one is there, whole; the next writer succeeds and
leaves nothing beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors.numpy import load_file

from flows import up_state
from pipeline import pack, trust
from pipeline.compare import combine_runs
from pipeline.data_store import open_store
from pipeline.exports import write_export
from pipeline.report import write_report
from pipeline.run_store import open_run, write_run
from pipeline.runs import export_run, list_runs
from pipeline.store import ingest
from pipeline.train import train
from tests.faults import samples
from tests.faults.killing import (
    Failed,
    Killed,
    Lost,
    at_event,
    at_size,
    in_child,
    n_events,
)
from tests.faults.outcomes import digest
from tests.faults.report import Case

ROOT = Path(__file__).parents[2]
SIZES = (1, 100, 1000, 3000)  # bytes of one file


@dataclass(frozen=True)
class Writer:
    """Writes version 0 or 1 of something into a folder, and says what is there."""

    write: Callable[[Path, int], Any]
    state: Callable[[Path], list[Any]]  # of each part; None where there is nothing
    replaces: bool = True  # writes over what is there already


def _files(*names: str) -> Callable[[Path], list[Any]]:
    def state(folder: Path) -> list[Any]:
        paths = [folder / name for name in names]
        return [digest(p.read_bytes()) if p.exists() else None for p in paths]

    return state


def _given_run(version: int) -> Any:
    return pickle.loads((_given() / f"{version}.pickle").read_bytes())


def _given_store(version: int) -> Path:
    return _given() / f"{version}.zarr"


def _given() -> Path:
    return Path(os.environ["FAULTS_GIVEN"])


def _run_state(folder: Path) -> list[Any]:
    store = folder / "default" / "run.zarr"
    statuses = [info.status for info in list_runs(folder)]
    assert statuses == ["complete"] * store.exists(), statuses
    return [open_run(store).attrs["content_sha256"] if store.exists() else None]


def _ingest(folder: Path, version: int) -> None:
    source = _given() / "d0.npz"
    ingest("npz", source=source, store=folder / "d.zarr", limit_train=30 + version)


def _data_state(folder: Path) -> list[Any]:
    store = folder / "d.zarr"
    return [open_store(store).content_sha256 if store.exists() else None]


def _exported(name: str) -> Callable[[Path, int], Any]:
    def write(folder: Path, version: int) -> None:
        write_export(combine_runs([_given_store(version)]), folder / name)

    return write


def _exported_zarr(folder: Path) -> list[Any]:
    if not (folder / "runs.zarr").exists():
        return [None]
    ds = xr.open_zarr(folder / "runs.zarr", consolidated=False, chunks=None).load()
    return [digest(ds["test_accuracy"].values)]


def _checkpoint_state(folder: Path) -> list[Any]:
    path = folder / "run.checkpoint.npz"
    return [digest(pack.load(path)) if path.exists() else None]


def _up(folder: Path, version: int) -> None:
    os.environ["NDCAO_HOME"] = str(folder)
    up_state.write({"version": version}, [])


def _up_version(folder: Path) -> list[Any]:
    os.environ["NDCAO_HOME"] = str(folder)
    state = up_state.read()
    return [None if state is None else state["version"]]


def _remember(folder: Path, version: int) -> None:
    os.environ["XDG_STATE_HOME"] = str(folder)
    function = ("table", "failures")[version]  # code that is not installed
    flags = {"loss": f"tests.faults.report:{function}", **samples.BLOCKS}
    trust.remember(samples.config_of(_given() / "d0.zarr", 0, flags))


def _remembered(folder: Path) -> list[Any]:
    path = folder / "ndcao" / "trusted.json"
    if not path.exists():
        return [None]
    return [sorted(json.loads(path.read_text(encoding="utf-8"))["entries"])]


def _train(folder: Path, version: int) -> None:
    flags = {"checkpoint_every_s": 0.0, **samples.BLOCKS}
    config = samples.config_of(_given() / "d0.zarr", version, flags)
    train(config, results=folder)


def _trained(folder: Path) -> list[Any]:
    runs = list_runs(folder)
    assert len({run.run_id for run in runs}) == len(runs), "complete and interrupted"
    stores = [run.path for run in runs if run.status == "complete"]
    return [open_run(stores[0]).attrs["params_sha256"] if stores else None]


WRITERS: dict[str, Writer] = {
    "write_run": Writer(
        lambda f, v: write_run(_given_run(v), f / "default" / "run.zarr"), _run_state
    ),
    "ingest": Writer(_ingest, _data_state),
    "checkpoint": Writer(
        lambda f, v: pack.save(
            f / "run.checkpoint.npz", {"version": v, "values": np.arange(5000.0) + v}
        ),
        _checkpoint_state,
    ),
    "report": Writer(
        lambda f, v: write_report(combine_runs([_given_store(v)]), f / "report.html"),
        _files("report.html"),
    ),
    "export": Writer(
        lambda f, v: export_run(_given_store(v), f / "network.safetensors"),
        lambda f: _tensors(f / "network.safetensors"),
    ),
    "export of tables": Writer(
        _exported("runs.csv"), _files("runs.csv", "runs.columns.csv")
    ),
    "export as Zarr": Writer(  # which refuses to replace one
        lambda f, v: (f / "runs.zarr").exists() or _exported("runs.zarr")(f, v),
        _exported_zarr,
        replaces=False,
    ),
    "state of up": Writer(_up, _up_version),
    "trusted list": Writer(_remember, _remembered),
    "training": Writer(_train, _trained, replaces=False),
}


def _tensors(path: Path) -> list[Any]:
    return [digest(load_file(path)) if path.exists() else None]


def cases(folder: Path, jobs: int, n_sample: int | None, seed: int) -> Iterator[Case]:
    """Yield what came of every writer, killed everywhere; or ``n_sample`` times each.

    The work is done by processes that import everything and read nothing: a process
    that is forked has no threads of those that it comes from.
    """
    arguments = [str(folder), str(n_sample or 0), str(seed), str(jobs)]
    given = folder / "given"
    environment = {**os.environ, "FAULTS_GIVEN": str(given)}
    make = [sys.executable, "-m", "tests.faults.writers", str(given)]
    subprocess.run(make, cwd=ROOT, env=environment, check=True)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.writers", *arguments, str(job)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in range(jobs)
    ]
    for process in processes:
        assert process.stdout is not None
        for line in process.stdout:
            yield Case(*json.loads(line))
        if process.wait():
            raise RuntimeError("a process that kills writers failed; see its traceback")


def _write_given(given: Path) -> None:
    """Write what the writers need: a raw data set, and two runs on it."""
    given.mkdir(parents=True)
    data = samples.data_store(given, "d0", 0)
    for version in (0, 1):
        config = samples.config_of(data, version, samples.BLOCKS)
        ds = train(config, results=given / "trained")
        (given / f"{version}.pickle").write_bytes(pickle.dumps(ds))
        shutil.copytree(ds.attrs["store"], _given_store(version))


def _work(folder: Path, n_sample: int, seed: int, jobs: int, job: int) -> None:
    variants = [
        (name, writer, replaces)
        for name, writer in WRITERS.items()
        for replaces in ((False, True) if writer.replaces else (False,))
    ]
    for name, writer, replaces in variants[job::jobs]:
        bench = _Bench(writer, folder / f"job{job}", replaces)
        kills = [("event", k) for k in range(bench.n_events)]
        kills += [("size", n) for n in SIZES]
        if n_sample and n_sample < len(kills):
            kills = random.Random(seed).sample(kills, n_sample)
        for kind, k in kills:
            outcome, said = bench.kill(at_event(k) if kind == "event" else at_size(k))
            what = "over the old" if replaces else "anew"
            case = Case(f"writer: {name}", f"killed at {kind}", what, outcome, said)
            print(json.dumps(dataclasses.astuple(case)), flush=True)


class _Bench:
    """One writer, and what is there before and after it when nobody kills it."""

    def __init__(self, writer: Writer, folder: Path, replaces: bool) -> None:
        self._writer, self._folder, self._old = writer, folder, folder / "old"
        self._new = int(replaces)
        shutil.rmtree(folder, ignore_errors=True)
        self._old.mkdir(parents=True)
        if replaces:
            in_child(lambda: writer.write(self._old, 0) and None)
        self.n_events = n_events(lambda: writer.write(self._fresh(), self._new))
        self._before = in_child(lambda: writer.state(self._old))
        self._after = in_child(self._whole)

    def _fresh(self) -> Path:
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._old, copy)
        return copy

    def _whole(self) -> Any:
        copy = self._fresh()
        self._writer.write(copy, self._new)
        return self._writer.state(copy)

    def kill(self, prepare: Callable[[], None]) -> tuple[str, str]:
        """Kill the writer once; return the outcome and what is wrong."""
        copy, writer = self._fresh(), self._writer
        try:
            with contextlib.suppress(Killed):
                in_child(lambda: writer.write(copy, self._new) and None, prepare)
            found = in_child(lambda: writer.state(copy))
            allowed = zip(found, self._before, self._after, strict=True)
            if any(part not in (old, new) for part, old, new in allowed):
                return "silent", "neither the old nor the new content"
            in_child(lambda: writer.write(copy, self._new) and None)
            found = in_child(lambda: writer.state(copy))
        except Lost:
            return "hang", "no end in time"
        except Failed as error:
            return "raw", str(error)
        left = [p.name for p in copy.rglob(".*") if p.suffix in (".partial", ".old")]
        if found != self._after or left:
            return "silent", f"after the next writer: {left or 'another content'}"
        return "same", ""


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _write_given(Path(sys.argv[1]))
    else:
        _work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
