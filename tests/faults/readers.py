"""Everything that reads a store or a checkpoint: functions from a place to an answer.

An answer holds all that the reader hands on, so that a damage cannot change it unseen;
only times, which differ each time, are left out.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors import safe_open

from pipeline.asynchrony import read_activity
from pipeline.compare import combine_runs, loaded, summary_table
from pipeline.config import RunConfig
from pipeline.data_store import open_store
from pipeline.exports import write_export
from pipeline.initial import initial_values
from pipeline.replay import replay
from pipeline.report import report_html
from pipeline.runs import (
    evaluate_run,
    export_run,
    list_runs,
    load_model,
    load_standardise,
    open_run,
    summary,
)
from pipeline.store import ingest
from pipeline.train import load_checkpoint, resume


@dataclass(frozen=True)
class Place:
    """Where a damaged copy lies; everything beside it is whole."""

    results: Path  # the folder of runs that holds it
    damaged: Path
    data: Path  # the whole data store
    run: Path  # a whole run on it; the one that was damaged, if it is one
    scratch: Path  # an empty folder


Reader = Callable[[Place], Any]


def _dataset(ds: xr.Dataset) -> dict[str, Any]:
    return {
        "attrs": ds.attrs,
        "values": {str(n): np.asarray(v.values) for n, v in ds.variables.items()},
        "about": {str(n): [v.dims, v.attrs] for n, v in ds.variables.items()},
    }


def _store_fields(place: Place, *, verify: bool) -> Any:
    store = open_store(place.damaged, verify=verify)
    fields = {
        field.name: getattr(store, field.name)
        for field in dataclasses.fields(store)
        if field.name != "files"
    }
    return fields, [store.load(split) for split in ("train", "val", "test")]


def _ingest(place: Place) -> Any:
    """Another ingest over it: whatever is there, the result is right, or it refuses."""
    source = place.data.with_suffix(".npz")
    store = ingest("npz", source=source, store=place.damaged)
    return store.content_sha256, store.size_bytes


def _listed(place: Place) -> Any:
    """The list of runs; that one is listed as damaged is an answer by name."""
    (info,) = list_runs(place.results)
    if info.status in ("damaged", "foreign"):
        raise ValueError(f"`run` must be whole; it is listed as {info.status}.")
    return dataclasses.astuple(info)


def _module(module: Any) -> Any:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def _init(place: Place) -> Any:
    whole = RunConfig.model_validate_json(open_run(place.run).attrs["config"])
    config = whole.model_copy(update={"init": str(place.damaged)})
    return initial_values(config, open_store(place.data), place.results)


def _combined(place: Place) -> Any:
    return _dataset(combine_runs([place.damaged]).compute(scheduler="threads"))


def _exported(place: Place) -> Any:
    write_export(combine_runs([place.damaged]), place.scratch / "runs.csv")
    return (place.scratch / "runs.csv").read_bytes()


def _network_file(place: Place) -> Any:
    path = export_run(place.damaged, place.scratch / "network.safetensors")
    with safe_open(path, framework="np") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _checkpoint(place: Place) -> Any:
    """A checkpoint's own content; its states are arrays within dataclasses."""
    from pipeline.pack import pack

    saved = load_checkpoint(place.damaged)
    if saved["run_id"] != place.damaged.name.removesuffix(".checkpoint.npz"):
        raise ValueError("`checkpoint` must be this run's, as `resume` says.")
    tree, arrays = pack(saved)
    return tree, list(arrays)


def _resumed(place: Place) -> Any:
    ds = resume(place.damaged, results=place.results)
    timeless = ("run_id", "params_sha256", "status", "stop_reason", "test_accuracy")
    names = [str(n) for n in ds.variables if not str(n).endswith("_s")]
    kept = {name: np.asarray(ds[name].values) for name in names}
    return {name: ds.attrs[name] for name in timeless}, kept


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.endswith("_s")}


def _page(place: Place) -> str:
    """The page; what it leaves out, it names."""
    page = report_html(combine_runs([place.damaged]))
    if "Without updates to show:" in page:
        raise ValueError("`run` must be whole; the page names what is not.")
    return page


#: Tried on every damage; of the others, which stand behind these, one after another.
DOORS = {
    *("open_store, load", "open_store unverified, load", "ingest over it"),
    *("open_run", "list_runs", "combine_runs", "asynchrony"),
    *("load_checkpoint", "resume"),
}
#: Those that change what they read.
CHANGING = {"ingest over it", "resume"}
READERS: dict[str, dict[str, Reader]] = {
    "data": {
        "open_store, load": lambda p: _store_fields(p, verify=True),
        "open_store unverified, load": lambda p: _store_fields(p, verify=False),
        "evaluate on it": lambda p: evaluate_run(p.run, p.damaged, p.results),
        "ingest over it": _ingest,
    },
    "run": {
        "open_run": lambda p: _dataset(open_run(p.damaged)),
        "summary": lambda p: summary(open_run(p.damaged)),
        "list_runs": _listed,
        "combine_runs": _combined,
        "summary_table": lambda p: summary_table(
            loaded(combine_runs([p.damaged]))
        ).to_csv(),
        "report": _page,
        "export of tables": _exported,
        "asynchrony": lambda p: read_activity(p.damaged),
        "load_model": lambda p: _module(load_model(p.damaged)),
        "load_standardise": lambda p: _module(load_standardise(p.damaged)),
        "evaluate": lambda p: evaluate_run(p.damaged, None, p.results),
        "export": _network_file,
        "replay": lambda p: _timeless(replay(p.damaged, results=p.results)),
        "init": _init,
    },
    "checkpoint": {
        "load_checkpoint": _checkpoint,
        "resume": _resumed,
    },
}


def readers_of(kind: str, number: int) -> list[str]:
    """Return the readers that are tried on damage ``number``."""
    doors = [name for name in READERS[kind] if name in DOORS]
    others = [name for name in READERS[kind] if name not in DOORS]
    return doors + others[number % len(others) :][:1] if others else doors


def place_copy(kind: str, path: Path, data: Path, run: Path, folder: Path) -> Place:
    """Copy what is to be damaged into ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    results = folder / "results"
    damaged = folder / path.name if kind == "data" else results / "default" / path.name
    damaged.parent.mkdir(parents=True)
    (folder / "scratch").mkdir()
    if path.is_dir():
        shutil.copytree(path, damaged)
    else:
        shutil.copyfile(path, damaged)
    return Place(results, damaged, data, run, folder / "scratch")
