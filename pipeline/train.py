"""Train, resume and replay a run: the Python entry points."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr
from filelock import FileLock, Timeout
from torch import Tensor

from pipeline import pack
from pipeline.asynchronous import (
    FreeTraining,
    ReplicaTraining,
)
from pipeline.batches import ResidentData
from pipeline.checkpoints import (
    check_named,
    check_rules,
    check_settings,
    is_over,
    standing,
)
from pipeline.cluster_config import check_complete, moved, recorded
from pipeline.config import RunConfig, validate_config
from pipeline.context import Context, RunSpec, context_of
from pipeline.data_store import DataStore, open_store
from pipeline.harness import (
    CHECKPOINT_FORMAT,
    BarrierTraining,
    Training,
    planned_rounds,
    round_costs,
)
from pipeline.initial import initial_values
from pipeline.journal import Journal
from pipeline.leases import Lend, RunIsLocked
from pipeline.main_guard import check_imported
from pipeline.memory import give_back
from pipeline.network_check import answers, differ, read
from pipeline.outputs import check_folder
from pipeline.own_data import same_data
from pipeline.pack import host
from pipeline.places import given_path
from pipeline.processors import several
from pipeline.progress import Progress, Watcher
from pipeline.record import params_sha256, to_dataset
from pipeline.replacing import older_reader
from pipeline.resolve import count_layers, network, resolve
from pipeline.run_store import open_run, write_run
from pipeline.running import check_blocks, opened, run
from pipeline.runs import (
    checkpoint_path,
    find_run,
    load_model,
    open_kept,
    results_folder,
    store_path,
)
from pipeline.store import ensure_store
from pipeline.trial import try_user_code
from pipeline.trust import remember, require, require_scheduler
from pipeline.user_code import (
    NO_CODE,
    check_unchanged,
    code_of,
    own_names,
    recorded_code,
    without_code,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """One run on disk and in configuration."""

    spec: RunSpec
    data: DataStore
    folder: Path
    again: bool
    former: dict[str, str]  # ids that the run had in older versions, and why no more

    @property
    def store(self) -> Path:
        return store_path(self.folder, self.spec.run_id)

    @property
    def checkpoint(self) -> Path:
        return checkpoint_path(self.folder, self.spec.run_id)


def train(
    config: RunConfig,
    *,
    results: str | Path | None = None,
    progress: Watcher | None = None,
    again: bool = False,
    stop: threading.Event | None = None,
    store: str | Path | None = None,
    lend: Lend | None = None,
) -> xr.Dataset:
    """Train one run and return its dataset, which is also stored.

    A run that is already stored is returned as it is (attribute ``status``: "exists")
    unless ``again``; one that was interrupted is continued from its checkpoint.

    Parameters
    ----------
    config : RunConfig — settings; ``None`` fields become the algorithm's defaults.
    results : folder of run stores; default ``$NDCAO_HOME/results``.
    progress : called with a ``Progress`` about twice a second.
    again : bool — train even if the run is stored or was interrupted.
    stop : when set, the run stops at the next piece, leaves a checkpoint, and the
        dataset that is returned has status "interrupted" and is not stored.
    store : path of the data store, instead of ``config.dataset``'s own.
    lend : opened when all is prepared, for the time that the run needs workers; yields
        the cluster to use instead of ``config.cluster``.

    Returns
    -------
    xarray.Dataset — see ``pipeline.schema``; attribute ``store`` says where it lies.

    Raises
    ------
    ValueError, FileNotFoundError — on bad settings or data; nothing is written.
    RuntimeError — if the cluster cannot be used, the disk is full, or another process
        trains the same run.
    """
    began = time.monotonic()
    own = None if store is None else given_path(store, "store")
    path = own or ensure_store(config.dataset)
    remember(config)
    job = _job(config, path, results_folder(results), again)
    check_folder(job.folder, "results")
    job.folder.mkdir(parents=True, exist_ok=True)
    with _only(job.folder, job.spec.run_id):
        saved = None if again else _saved(job.folder, job.spec.run_id)
        if job.store.exists() and not again:
            ds = _existing(job.store)
            if own_names(config):  # says so if it computes something else by now
                load_model(ds, trust=True)
            return ds
        warnings = [] if again or saved else _of_older_versions(job)
        if old_data := older_reader(path):
            logger.warning(old_data)
            warnings.append(old_data)
        if saved is not None:
            check_settings(saved, job.spec.config, job.checkpoint)
            check_rules(saved, job.spec.config, job.checkpoint)
            logger.info("continuing %s from its checkpoint", job.spec.run_id)
        ds = _train(job, saved, progress, stop, began, lend)
        ds.attrs["warnings"] = warnings + ds.attrs["warnings"]
        return ds


def _saved(folder: Path, run_id: str) -> dict[str, Any] | None:
    """A run's checkpoint; None if there is none, or its run was stored after it.

    A process that is killed between the two leaves both: the store is what counts.
    """
    path = checkpoint_path(folder, run_id)
    if not path.exists():
        return None
    saved = load_checkpoint(path)
    check_named(saved, run_id, path)
    if is_over(saved, path, store_path(folder, run_id)):
        open_run(store_path(folder, run_id))  # if it is damaged, nothing is removed
        path.unlink()
        return None
    return saved


def _existing(store: Path) -> xr.Dataset:
    ds = open_kept(store)
    ds.attrs["status"] = "exists"
    return ds


def _of_older_versions(job: _Job) -> list[str]:
    """Say which runs there are that an older version would have gone on with."""
    found = []
    for run_id, why in job.former.items():
        kept = store_path(job.folder, run_id), checkpoint_path(job.folder, run_id)
        for path in kept:
            if path.exists():
                found.append(
                    f"`run` {path.name} is this run as an older version made it "
                    f"({why}); it stays as it is, and {job.spec.run_id} is trained "
                    "anew."
                )
                logger.warning(found[-1])
    return found


def resume(
    run: str | Path,
    *,
    results: str | Path | None = None,
    progress: Watcher | None = None,
    stop: threading.Event | None = None,
    cluster: dict[str, Any] | None = None,
    trust: bool = False,
) -> xr.Dataset:
    """Continue an interrupted run from its checkpoint, on any cluster.

    Parameters
    ----------
    run : run id, or path of its checkpoint.
    cluster : settings of ``config.cluster`` to change. A run keeps no values of
        ``options`` and ``tls``, which may be secrets: give them again.
    trust : run the model and loss that the checkpoint names, also if this user never
        trained with that code (see ``pipeline.trust``).

    Raises
    ------
    FileNotFoundError — if there is no such run.
    ValueError — if settings of the cluster are missing, among others.
    """
    began = time.monotonic()
    folder, run_id = find_run(run, results_folder(results), checkpoint=True)
    with _only(folder, run_id):
        saved = _saved(folder, run_id)
        if saved is None:
            return _existing(store_path(folder, run_id))
        job = _continued(saved, folder, cluster or {}, trust)
        warnings = without_code(saved, job.spec.config, run_id)
        ds = _train(job, saved, progress, stop, began)
        ds.attrs["warnings"] = warnings + ds.attrs["warnings"]
        return ds


def _continued(
    saved: dict[str, Any], folder: Path, cluster: dict[str, Any], trust: bool
) -> _Job:
    """The run that a checkpoint is of, on another cluster if settings are given."""
    run_id = saved["run_id"]
    data = json.loads(saved["config"])
    # A record keeps no options: values in it are not of ours, and may be commands.
    place = data.get("cluster", {}) if isinstance(data, dict) else None
    if not isinstance(place, dict):
        raise ValueError(
            f"`checkpoint` must hold a run's settings; got {saved['config'][:60]!r} in "
            f"{checkpoint_path(folder, run_id)}. Train again with --again."
        )
    data["cluster"] = moved(recorded(place), cluster)
    config = validate_config(data)
    require_scheduler(config, run_id, cluster, trust=trust)
    require(config, run_id, trust=trust, recorded=recorded_code(saved))
    check_complete(config.cluster)
    check_rules(saved, config, checkpoint_path(folder, run_id))
    store = same_data(
        run_id, saved["content_sha256"], [Path(saved["store"])], config.dataset
    )
    code = code_of(config, network(config, store)) if own_names(config) else NO_CODE
    check_unchanged(saved, code, run_id)
    spec = RunSpec(
        run_id,
        config,
        str(store.path.resolve()),
        store.content_sha256,
        saved["n_steps"],
        saved["params"],
        saved["buffers"],
        code,
    )
    return _Job(spec, store, folder, again=False, former={})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a run's checkpoint.

    Raises
    ------
    ValueError — if it is damaged, or of another format.
    """
    saved = pack.load(path)
    version = saved.get("format") if isinstance(saved, dict) else None
    if version != CHECKPOINT_FORMAT:
        raise ValueError(
            f"`checkpoint` must be of format {CHECKPOINT_FORMAT}; got {version} at "
            f"{path}. Train again with --again."
        )
    found: dict[str, Any] = saved
    return found


def _job(config: RunConfig, path: Path, results: Path, again: bool) -> _Job:
    data = open_store(path)
    config = resolve(config, data)
    n_loss = ResidentData.count(data, config)
    costs = round_costs(config, n_loss, data.n_train, count_layers(config, data))
    n_steps = planned_rounds(config.budget, costs)
    params, buffers = initial_values(config, data, results)
    init = "" if params is None else params_sha256(params)
    code = code_of(config, network(config, data)) if own_names(config) else NO_CODE
    named = (data.name, data.content_sha256, init, code.digest)
    spec = RunSpec(
        config.run_id(*named),
        config,
        str(path.resolve()),
        data.content_sha256,
        n_steps,
        params,
        buffers,
        code,
    )
    folder = results / config.experiment
    return _Job(spec, data, folder, again, config.former_ids(*named))


def stored(config: RunConfig, *, results: str | Path | None = None) -> Path | None:
    """Return where a complete run of this configuration lies; None if nowhere.

    Raises
    ------
    ValueError, FileNotFoundError — on bad settings or data.
    """
    path = ensure_store(config.dataset)
    job = _job(config, path, results_folder(results), again=False)
    return job.store if job.store.exists() else None


def is_locked(config: RunConfig, *, results: str | Path | None = None) -> bool:
    """Whether some process trains this very run now."""
    job = _job(
        config, ensure_store(config.dataset), results_folder(results), again=False
    )
    try:
        with _only(job.folder, job.spec.run_id):
            return False
    except RunIsLocked:
        return True


@contextlib.contextmanager
def _only(folder: Path, run_id: str) -> Iterator[None]:
    """Hold the run's lock; another process that trains it is an error, not a race."""
    lock = FileLock(folder / f".{run_id}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        check_imported()  # by a worker of the very process that holds the lock
        raise RunIsLocked(
            "`run` must be trained by one process at a time; "
            f"{run_id} is being trained by another. Wait for it, or change a "
            "setting."
        ) from err
    try:
        yield
    finally:
        lock.release()


def _train(
    job: _Job,
    saved: dict[str, Any] | None,
    progress: Watcher | None,
    stop: threading.Event | None,
    began: float,
    lend: Lend | None = None,
) -> xr.Dataset:
    context = context_of(job.spec, anew=True)
    try_user_code(context)
    job = replace(job, spec=replace(job.spec, origin=context.origin_sha256))
    check_blocks(job.spec.config, context)
    kind: type[Training] = BarrierTraining
    if not job.spec.config.in_pieces:
        scored = job.spec.config.algorithm.scored
        kind = FreeTraining if scored else ReplicaTraining
    training = kind(job.spec, context, job.checkpoint, progress, stop)
    training.of_the_code = _of_the_code(job, context, saved)
    training.replaces = (saved or {}).get("replaces", standing(job.store))
    if saved is not None:
        training.journal = Journal.from_plain(saved["journal"], job.spec.run_id)
        training.note_processors()
    before = training.journal.total_time_s
    training.watch(Progress("starting", n_rounds=job.spec.n_steps))
    own = contextlib.nullcontext(job.spec.config.cluster)
    with lend() if lend else own as where, opened(where, job.spec) as cluster:
        params, buffers = run(training, job.spec, cluster, saved)
    training.journal.total_time_s = before + time.monotonic() - began
    ds = _land(job, training, params, buffers)
    give_back()
    return ds


def _of_the_code(
    job: _Job, context: Context, saved: dict[str, Any] | None
) -> dict[str, str]:
    """What a checkpoint records of a user's own code, and of what it computes.

    Raises
    ------
    ValueError — if it computes something else than when the checkpoint was begun.
    """
    if not own_names(job.spec.config):
        return {}
    now = answers(
        context.model,
        context.initial,
        context.buffers,
        job.data.image_shape,
        context.loss_function,
    )
    then = (saved or {}).get("first_outputs")
    how = differ(read(then), now, elsewhere=True) if then else ""
    if how:
        raise ValueError(
            f"`checkpoint` must go on with the network that {job.spec.run_id} was "
            f"begun with; got {how}, at the same parameters. Put back the files and "
            "variables that its code reads, or train anew with --again."
        )
    code = job.spec.code or NO_CODE
    return {"user_code": code.to_json(), "first_outputs": json.dumps(now)}


def _land(
    job: _Job, training: Training, params: Tensor, buffers: Tensor | None
) -> xr.Dataset:
    training.note_processors()
    reason = training.journal.stop_reason
    status = {"interrupted": "interrupted"}.get(reason, "complete")
    if reason.startswith("diverged"):
        status = "diverged"
    extra = {
        "status": status,
        "stop_reason": reason,
        "dataset": job.data.name,
        "data_sha256": job.spec.content_sha256,
        "data_store": str(job.data.path),
        "data_store_absolute": str(job.data.path.resolve()),
        "image_shape": json.dumps(job.data.image_shape),
        "n_classes": job.data.n_classes,
        "class_names": json.dumps(job.data.class_names),
        "n_workers": training.n_workers,
        "clock": job.spec.config.clock,
        "total_time_s": training.journal.total_time_s,
    }
    if job.spec.code:
        extra["user_code"] = job.spec.code.to_json()
    own = None if buffers is None else host(buffers)
    ds = to_dataset(training.context, training.journal, host(params), own, extra)
    training.tell("saving", int(ds["step"][-1]) if ds.sizes["eval"] else 0)
    where = job.checkpoint
    if status != "interrupted":
        where = write_run(ds, job.store)
        job.checkpoint.unlink(missing_ok=True)
    told = several(job.spec.run_id, training.journal.processors)
    ds.attrs |= {"store": str(where), "warnings": told}
    return ds
