"""From a run's journal to its xarray Dataset."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import xarray as xr

from pipeline.context import Context
from pipeline.journal import Journal
from pipeline.network_check import answers
from pipeline.pack import tensor
from pipeline.processors import kinds, processor, processor_name
from pipeline.rules import rules_of
from pipeline.schema import VARIABLES, check_schema, variable

LONGEST = 20_000  # characters of a network's text
PACKAGES = ("ndcao", "torch", "numpy", "dask", "distributed", "zarr", "xarray")


def params_sha256(params: np.ndarray) -> str:
    """Hash of the flat parameters as little-endian float32."""
    return hashlib.sha256(
        np.ascontiguousarray(params, dtype="<f4").tobytes()
    ).hexdigest()


def to_dataset(
    context: Context,
    journal: Journal,
    params: np.ndarray,
    buffers: np.ndarray | None,
    extra: dict[str, Any],
) -> xr.Dataset:
    """Return the run as one schema-checked dataset.

    Parameters
    ----------
    params : (P,) float32 — final solution.
    buffers : (B,) float32 or None.
    extra : attributes that only the harness knows (status, n_workers, dataset, …).
    """
    data: dict[str, Any] = {
        name: [row[name] for row in journal.evals]
        for name, spec in VARIABLES.items()
        if spec.dims == ("eval",)
    }
    origin = _origin(journal)
    updates = np.array(journal.updates, dtype=np.float64).reshape(-1, 6)
    data |= {
        "update_node": updates[:, 0],
        "update_step": updates[:, 1] + 1,
        "seen_version": updates[:, 2],
        "scored_version": scored_versions(journal),
        "start_s": updates[:, 3] - origin,
        "end_s": updates[:, 4] - origin,
        "worker": updates[:, 5],
    }
    records = [record for record, _, _ in journal.scores]
    n_probes = context.algorithm.n_probes
    data |= {
        "score_version": [r.version for r in records],
        "score_loss": [r.loss for r in records],
        "score_start_s": [start - origin for _, start, _ in journal.scores],
        "score_end_s": [end - origin for _, _, end in journal.scores],
        "score_subset": [r.subset for r in records],
        "score_losses": np.array([r.losses for r in records]).reshape(-1, n_probes),
        "score_steps": np.array([r.steps for r in records]).reshape(
            -1, context.n_nodes
        ),
        "params": params,
        "input_mean": context.data.standard.mean,
        "input_std": context.data.standard.std,
        "best_params": params if journal.best_params is None else journal.best_params,
    }
    if journal.inboxes and any(max(row) >= 0 for row in journal.inboxes):
        data["inbox_step"] = np.array(journal.inboxes)
    if buffers is not None:
        best = journal.best_buffers
        data |= {"buffers": buffers, "best_buffers": buffers if best is None else best}
    ds = xr.Dataset({name: variable(name, values) for name, values in data.items()})
    ds.attrs.update(_attributes(context, journal, params) | extra)
    ds.attrs["first_update_at_s"] = origin
    ds.attrs["network"] = str(context.model.module)[:LONGEST]
    theta = tensor(params, context.device)
    own = None if buffers is None else tensor(buffers, context.device)
    shape = context.data.image_shape
    found = answers(context.model, theta, own, shape, context.loss_function)
    ds.attrs["network_outputs"] = json.dumps(found)
    check_schema(ds)
    return ds


def _origin(journal: Journal) -> float:
    starts = [u[3] for u in journal.updates] + [s[1] for s in journal.scores]
    return min(starts, default=0.0)


def scored_versions(journal: Journal) -> np.ndarray:
    """(U,) first version that scored each update's point, −1 for none.

    Where nothing is scored: how many updates were folded with it, −1 for an update that
    saw nothing of the others.
    """
    if not journal.scores:
        seen = np.array([u[2] for u in journal.updates], dtype=np.int64)
        return np.where(seen >= 0, np.arange(1, len(seen) + 1), -1)
    first: dict[tuple[int, int], int] = {}
    for record, _, _ in journal.scores:
        for node, step in enumerate(record.steps):
            first.setdefault((node, step), record.version)
    pairs = [first.get((node, step + 1), -1) for node, step, *_ in journal.updates]
    return np.array(pairs, dtype=np.int64)


def mean_staleness(journal: Journal, last: int | None = None) -> float:
    """Mean versions between what an update saw and what scored it; NaN before any."""
    updates = journal.updates[-last:] if last else journal.updates
    recent = Journal(updates=updates, scores=journal.scores[-(last or 0) * 2 :])
    scored = scored_versions(recent)
    if not journal.scores:
        scored = np.where(scored >= 0, scored + len(journal.updates) - len(updates), -1)
    seen = np.array([u[2] for u in updates], dtype=np.int64)
    known = (scored >= 0) & (seen >= 0)
    return float((scored - seen - 1)[known].mean()) if known.any() else math.nan


def _attributes(
    context: Context, journal: Journal, params: np.ndarray
) -> dict[str, Any]:
    config = context.config
    last = journal.evals[-1] if journal.evals else {}
    layout = [[s.name, list(s.shape)] for s in context.model.layout.segments]
    commit, dirty = git_state()
    return {
        "title": f"ndcao run {context.spec.run_id}",
        "Conventions": "CF-1.11",
        "run_id": context.spec.run_id,
        "algorithm": config.algorithm.kind,
        "mode": config.mode,
        "model": config.model.name,
        "partition": config.blocks or "all",
        "seed": config.seed,
        "config": config.record(),
        "rules": json.dumps(rules_of(config)),
        "n_steps": context.spec.n_steps,
        "test_accuracy": _number(last.get("test_accuracy")),
        "train_loss": _number(last.get("train_loss")),
        "n_loss_evals": journal.counters.n_loss_evals,
        "n_samples": journal.counters.n_samples,
        "n_gradient_evals": journal.counters.n_gradient_evals,
        "bytes_moved": journal.counters.bytes_moved,
        "wall_time_s": journal.wall_time_s,
        "eval_time_s": journal.eval_time_s,
        "n_reruns": journal.n_reruns,
        "worker_names": list(journal.worker_names),
        "params_sha256": params_sha256(params),
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": json.dumps(package_versions()),
        "hardware": json.dumps(hardware() | {"processors": journal.processors}),
        "layout": json.dumps(layout),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def git_state() -> tuple[str, bool]:
    """Commit of the code and whether it has changes; ("", False) outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return answer.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in bytes, and devices."""
    return {
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        ],
    }


def same_platform(ds: xr.Dataset) -> bool:
    """Whether this process has the processor, devices and packages of a run.

    None has those of a run that was computed on several kinds.
    """
    here = {"versions": package_versions(), "hardware": hardware()}
    keys = ("processor", "cpu_capability", "gpus")
    stored = json.loads(ds.attrs["hardware"])
    used = stored.get("processors")  # not in the runs of older versions
    device = json.loads(ds.attrs["config"]).get("device", "cpu")
    if used and used != kinds([processor()], device):
        return False
    return json.loads(ds.attrs["versions"]) == here["versions"] and all(
        stored[key] == here["hardware"][key] for key in keys
    )
