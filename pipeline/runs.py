"""The folder of runs: list, find, open, evaluate, export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import xarray as xr

from pipeline.places import data_folder, given_path
from pipeline.run_store import open_run, run_attributes
from pipeline.sealed import UNREADABLE, SealedStore

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.standardise import Standardisation

__all__ = [
    "RunInfo",
    "checkpoint_path",
    "evaluate_run",
    "export_run",
    "find_run",
    "list_runs",
    "load_model",
    "load_standardise",
    "open_run",
    "results_folder",
    "store_path",
    "summary",
]

CHECKPOINT = ".checkpoint.npz"
STORE = ".zarr"
TELLING = "train_loss/c.0"  # a small file that differs between runs of any clock
MAX_ATTRIBUTES = 64 * 2**20  # bytes that are read to list a run
_NUMBER = (int, float, NoneType)
_FIGURES: dict[str, Any] = {  # that a listing shows, and what they must be
    "status": str,
    "test_accuracy": _NUMBER,
    "train_loss": _NUMBER,
    "n_loss_evals": (int, NoneType),
    "wall_time_s": _NUMBER,
    "stop_reason": str,
}


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One line of ``ndcao runs``."""

    run_id: str
    experiment: str
    status: str  # complete, diverged, interrupted, damaged, foreign
    path: Path
    test_accuracy: float | None = None
    train_loss: float | None = None
    n_loss_evals: int | None = None
    wall_time_s: float | None = None
    stop_reason: str = ""


def store_path(folder: Path, run_id: str) -> Path:
    """Where a finished run lies."""
    return folder / f"{run_id}{STORE}"


def checkpoint_path(folder: Path, run_id: str) -> Path:
    """Where a run leaves its checkpoint while it trains."""
    return folder / f"{run_id}{CHECKPOINT}"


def list_runs(results: str | Path | None = None) -> list[RunInfo]:
    """Return every run under ``results``, finished ones and those to be resumed.

    Only attributes are read. What is called like a run and is none is listed too, as
    "foreign" if it is a Zarr store of something else, else as "damaged". A run that is
    complete and interrupted is on its way with --again, unless the checkpoint is the
    older one.
    """
    folder = results_folder(results)
    found = [_stored(path) for path in sorted(folder.glob(f"*/*{STORE}"))]
    for path in sorted(folder.glob(f"*/*{CHECKPOINT}")):
        run_id = path.name.removesuffix(CHECKPOINT)
        if is_older(path, store_path(path.parent, run_id)):
            continue
        found.append(RunInfo(run_id, path.parent.name, "interrupted", path))
    return found


def is_older(checkpoint: Path, store: Path) -> bool:
    """Whether a checkpoint was written before the store beside it was."""
    try:
        marker = (store / "zarr.json").stat()
        return checkpoint.stat().st_mtime_ns <= marker.st_mtime_ns
    except OSError:
        return False  # one of them is not there, or not ours to look at


def _stored(path: Path) -> RunInfo:
    run_id, experiment = path.name.removesuffix(STORE), path.parent.name
    attrs = _attributes(path)
    if attrs is not None and "run_id" not in attrs:
        return RunInfo(run_id, experiment, "foreign", path)
    try:
        attrs = run_attributes(path)
        SealedStore(path, attrs).read(TELLING)
    except UNREADABLE:
        return RunInfo(run_id, experiment, "damaged", path)
    figures: dict[str, Any] = {name: attrs.get(name) for name in _FIGURES}
    if not all(isinstance(figures[name], _FIGURES[name]) for name in _FIGURES):
        return RunInfo(run_id, experiment, "damaged", path)
    return RunInfo(run_id, experiment, path=path, **figures)


def _attributes(path: Path) -> dict[str, Any] | None:
    """Return the attributes of a Zarr store; None if they cannot be read."""
    try:
        with (path / "zarr.json").open("rb") as file:
            text = file.read(MAX_ATTRIBUTES + 1)
        attrs = json.loads(text)["attributes"] if len(text) <= MAX_ATTRIBUTES else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return attrs if isinstance(attrs, dict) else None


def results_folder(results: str | Path | None = None) -> Path:
    """Return ``results``, or ``$NDCAO_HOME/results`` when that is not given."""
    if results is None:
        return data_folder().parent / "results"
    return given_path(results, "results")


def find_run(
    run: str | Path, results: str | Path | None = None, checkpoint: bool = False
) -> tuple[Path, str]:
    """Return (folder, run id) of a run given by path, by id, or by the start of its id.

    Raises
    ------
    FileNotFoundError — if there is no such run.
    ValueError — if several runs fit, or the name is empty.
    """
    path = given_path(run, "run")
    for suffix in (STORE, CHECKPOINT):
        if path.name.endswith(suffix) and path.exists():
            return path.parent, path.name.removesuffix(suffix)
    results = results_folder(results)
    suffixes = (STORE, CHECKPOINT) if checkpoint else (STORE,)
    fits = {
        (found.parent, found.name.removesuffix(suffix))
        for suffix in suffixes
        for found in Path(results).glob(f"*/*{suffix}")
        if found.name.startswith(str(run)) and not found.name.startswith(".")
    }
    exact = {(folder, run_id) for folder, run_id in fits if run_id == str(run)}
    chosen = exact or fits
    if not chosen:
        raise FileNotFoundError(
            "`run` must be a run's id, the start of one, or a store's path; got "
            f"{run}, and nothing under {results} fits. See `ndcao runs`."
        )
    if len(chosen) > 1:
        names = ", ".join(sorted(f"{f.name}/{r}" for f, r in chosen)[:4])
        raise ValueError(
            f"`run` must name one run; got {run}, which fits {names}. Add more."
        )
    return chosen.pop()


def open_named(run: str | Path, results: str | Path | None) -> xr.Dataset:
    """Open a run given as ``find_run`` takes it."""
    folder, run_id = find_run(run, results)
    ds = open_run(store_path(folder, run_id))
    ds.attrs["store"] = str(store_path(folder, run_id))
    return ds


def open_kept(store: Path) -> xr.Dataset:
    """Open the run that lies where a training would keep it.

    Raises
    ------
    ValueError — if it is another run, or damaged.
    """
    ds = open_run(store)
    if ds.attrs["run_id"] != store.name.removesuffix(STORE):
        raise ValueError(
            f"`run` must lie under its own id to be found again; got "
            f"{ds.attrs['run_id']} at {store}. Move it away, or train with --again."
        )
    ds.attrs["store"] = str(store)
    return ds


def summary(ds: xr.Dataset) -> dict[str, Any]:
    """Return the line that ``ndcao train --json`` prints."""
    names = ("run_id", "store", "status", "stop_reason", "test_accuracy", "train_loss")
    counts = ("n_loss_evals", "n_samples", "wall_time_s", "params_sha256")
    found = {name: ds.attrs.get(name) for name in names + counts}
    return found | {"warnings": list(ds.attrs.get("warnings", ()))}


def load_model(
    run: str | Path | xr.Dataset,
    results: str | Path | None = None,
    *,
    trust: bool = False,
) -> nn.Module:
    """Return the trained network of a run as a torch module in evaluation mode.

    Inputs are standardised images, float32 (n, C, H, W); ``load_standardise`` returns
    the module that makes them from pixels in [0, 1].

    Parameters
    ----------
    run : a run's dataset, path or id.
    trust : run the model that the run names, also if this user never trained with that
        code.

    Raises
    ------
    ValueError — if the run names code of its own that is not trusted.
    """
    from blocks.dotted import is_dotted
    from blocks.forward import FlatModel
    from pipeline.code_changes import changes_since
    from pipeline.config import RunConfig
    from pipeline.network_check import answers, check_size
    from pipeline.pack import tensor
    from pipeline.trust import require
    from pipeline.user_code import recorded_code

    ds = run if isinstance(run, xr.Dataset) else open_named(run, results)
    config = RunConfig.model_validate_json(ds.attrs["config"])
    recorded = recorded_code(ds.attrs)
    require(config, ds.attrs["run_id"], trust=trust, recorded=recorded)
    own = config.model.name if is_dotted(config.model.name) else ""
    model = FlatModel(_bare_module(ds), user=own)
    check_size(ds.attrs["run_id"], ds.sizes["parameter"], model.n_params)
    params = tensor(ds["params"].values)
    buffers = tensor(ds["buffers"].values) if "buffers" in ds else None
    shape = json.loads(ds.attrs["image_shape"])
    now = answers(model, params, buffers, tuple(shape))
    changes_since(ds, config, model.module, now, device=model.device.type)
    return model.to_module(params, buffers)


def load_standardise(
    run: str | Path | xr.Dataset, results: str | Path | None = None
) -> nn.Module:
    """Return the module that turns pixels in [0, 1] into a run's network inputs."""
    from pipeline.standardise import Standardise

    ds = run if isinstance(run, xr.Dataset) else open_named(run, results)
    return Standardise(standard_of(ds))


def standard_of(ds: xr.Dataset) -> Standardisation:
    """Return the standardisation that a run was trained with."""
    from pipeline.standardise import Standardisation

    return Standardisation(ds["input_mean"].values, ds["input_std"].values)


def _bare_module(ds: xr.Dataset) -> nn.Module:
    from blocks.models import build_model
    from pipeline.config import RunConfig

    config = RunConfig.model_validate_json(ds.attrs["config"])
    shape = tuple(json.loads(ds.attrs["image_shape"]))
    return build_model(
        config.model.name,
        shape,
        ds.attrs["n_classes"],
        seed=config.seed,
        **config.model.arguments(),
    )


def evaluate_run(
    run: str | Path,
    dataset: str | Path | None = None,
    results: str | Path | None = None,
    *,
    trust: bool = False,
) -> dict[str, Any]:
    """Score a run's final network again, on its own data or on another data set.

    Computed shard by shard as in training, in this process: on the run's own data and
    platform the test accuracy is the recorded one, exactly, and ``warnings`` says so if
    it is not. Data that are named may have the run's classes in another order. Code of
    the run's own that this user never trained with is run only with ``trust``.

    Returns
    -------
    dict — run_id, dataset, test_loss, test_accuracy, n_test, recorded_test_accuracy,
        warnings.

    Raises
    ------
    FileNotFoundError — if there is no such run, or its data are gone.
    ValueError — if its data have another content by now, or those that are named other
        images or classes.
    """
    from pipeline.evaluating import score_again

    return score_again(open_named(run, results), dataset, trust=trust)


def export_run(
    run: str | Path,
    path: str | Path,
    results: str | Path | None = None,
    *,
    trust: bool = False,
) -> Path:
    """Write a run's network as a safetensors file that ``--init`` and other tools read.

    Besides the network's own tensors the file holds ``standardise.mean`` and
    ``standardise.std``; its metadata name the run, the model and the image shape.
    Weights that layers share are there under each of their names. ``trust`` is that
    of ``load_model``.

    Raises
    ------
    ValueError — if the network's state is not all in dense tensors, or has a name of
        ours.
    """
    from safetensors.torch import save

    from pipeline.outputs import may_write
    from pipeline.whole_file import write_whole

    path = may_write(path, "network", "path")
    ds = open_named(run, results)
    module = load_model(ds, trust=trust)
    metadata = {
        key: str(ds.attrs[key])
        for key in ("run_id", "model", "image_shape", "class_names")
    }
    state = _tensors(module, ds.attrs["model"])
    ours = {f"standardise.{k}": v for k, v in load_standardise(ds).state_dict().items()}
    taken = sorted(state.keys() & ours.keys())
    if taken:
        raise ValueError(
            f"`model` must leave names under `standardise` to the export; got "
            f"{ds.attrs['model']!r} with `{taken[0]}`. Rename that layer."
        )
    return write_whole(path, save(state | ours, metadata))


def _tensors(module: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """A network's state in memory of its own: safetensors takes no shared tensors."""
    import torch

    from blocks.usercode import calling

    with calling("model", name, "have a state that can be exported"):
        state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            kind = value.layout if isinstance(value, torch.Tensor) else type(value)
            raise ValueError(
                "`model` must keep its state in dense tensors to be exported; got "
                f"`{key}` of {name!r}, a {getattr(kind, '__name__', kind)}. Keep it in "
                "a buffer, or use `pipeline.runs.load_model`."
            )
    return {
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
