"""The registry of every result variable and attribute of one run.

A run is one dataset. Its dimensions:

``eval``              evaluations of the joined solution
``update``            accepted block updates, in the order in which they were folded
``score``             published global losses
``node``, ``probe``   participants; the joint probes of one score
``parameter``         flat parameters, whose names and shapes are in ``layout``
``buffer``            flat float buffers (normalisation statistics), if there are any

An update's node and step are ``update_node`` and ``update_step``: ``node`` is a
dimension and ``step`` the budget axis of ``eval``, and a dataset has one variable to a
name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

__all__ = [
    "ATTRIBUTES",
    "VARIABLES",
    "Attribute",
    "Variable",
    "check_schema",
    "describe",
    "variable",
]


@dataclass(frozen=True, slots=True)
class Variable:
    """One result variable; ``required`` variables are in every run."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    long_name: str
    meaning: str
    required: bool = True

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes that the variable carries in a store."""
        return {
            "long_name": self.long_name,
            "units": self.units,
            "description": self.meaning,
        }


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a run; ``json`` ones are strings that hold a JSON document."""

    name: str
    types: tuple[type, ...]
    meaning: str
    required: bool = True
    json: bool = False


_COUNT64, _COUNT32, _REAL = "int64", "int32", "float64"


def _over(dims: str, *rows: tuple[str, str, str, str, str]) -> list[Variable]:
    over = tuple(dims.split())
    return [
        Variable(name, over, dtype, units, long_name, meaning)
        for name, dtype, units, long_name, meaning in rows
    ]


_EVAL = _over(
    "eval",
    ("step", _COUNT64, "1", "updates per node", "folded so far"),
    ("version", _COUNT64, "1", "version", "newest at the evaluation"),
    ("wall_time_s", _REAL, "s", "wall time", "since the first update, no evaluations"),
    ("n_loss_evals", _COUNT64, "1", "loss values", "scalar losses scored so far"),
    ("n_samples", _COUNT64, "1", "samples", "passed forward so far, probes included"),
    ("n_gradient_evals", _COUNT64, "1", "gradient evaluations", "so far"),
    ("bytes_moved", _COUNT64, "B", "bytes moved", "of all messages so far"),
    (
        "train_loss",
        _REAL,
        "1",
        "training loss",
        "of up to 20,000 training samples, evenly spaced",
    ),
    ("val_loss", _REAL, "1", "validation loss", "mean over the validation set"),
    ("val_accuracy", _REAL, "1", "validation accuracy", "share classified correctly"),
    ("test_loss", _REAL, "1", "test loss", "mean over the whole test set"),
    ("test_accuracy", _REAL, "1", "test accuracy", "share of the whole test set"),
)
_UPDATE = _over(
    "update",
    ("update_node", _COUNT32, "1", "node", "the node that stepped"),
    ("update_step", _COUNT64, "1", "step", "the node's own count after the update"),
    ("seen_version", _COUNT64, "1", "seen version", "of its loss; -1 none"),
    ("scored_version", _COUNT64, "1", "scored version", "first of its point; -1 none"),
    ("start_s", _REAL, "s", "start", "since the first update"),
    ("end_s", _REAL, "s", "end", "since the first update"),
    ("worker", _COUNT32, "1", "worker", "position in the attribute worker_names"),
)
_SCORE = _over(
    "score",
    ("score_version", _COUNT64, "1", "version", "that the score published"),
    ("score_loss", _REAL, "1", "loss", "mean of the K probe losses"),
    ("score_start_s", _REAL, "s", "start", "since the first update"),
    ("score_end_s", _REAL, "s", "end", "since the first update"),
    ("score_subset", _COUNT64, "1", "subset", "which draw of the scoring subset"),
)
_PARTS = [
    *_over("score probe", ("score_losses", _REAL, "1", "probe losses", "K a score")),
    *_over(
        "score node", ("score_steps", _COUNT64, "1", "scored steps", "of the nodes")
    ),
    *_over("parameter", ("params", "float32", "1", "parameters", "final solution")),
    *_over(
        "parameter",
        (
            "best_params",
            "float32",
            "1",
            "parameters",
            "of the smallest validation loss",
        ),
    ),
]
_OPTIONAL = [
    *_over(
        "update node",
        (
            "inbox_step",
            _COUNT64,
            "1",
            "inbox step",
            "of each node's message that an asynchronous update used; -1 none",
        ),
    ),
    *_over(
        "channel input_y input_x",
        (
            "input_mean",
            "float32",
            "1",
            "input mean",
            "subtracted from pixels in [0, 1]; one value a channel, or the mean image",
        ),
    ),
    *_over(
        "channel",
        (
            "input_std",
            "float32",
            "1",
            "input scale",
            "that centred pixels are divided by",
        ),
    ),
    *_over("buffer", ("buffers", "float32", "1", "buffers", "of params")),
    *_over("buffer", ("best_buffers", "float32", "1", "buffers", "of best_params")),
]
VARIABLES: dict[str, Variable] = {
    v.name: v
    for v in (
        *(*_EVAL, *_UPDATE, *_SCORE, *_PARTS),
        *(replace(v, required=False) for v in _OPTIONAL),
    )
}

_NUMBER, _COUNT, _TEXT = (float, int), (int,), (str,)
_MAYBE = (float, int, type(None))
_MARKERS = ("complete", "content_sha256")
# Not in the runs of older versions.
_LATER = ("rules", "user_code", "network", "network_outputs")
_JSON = (
    *("config", "versions", "hardware", "layout"),
    *("rules", "user_code", "network_outputs"),
)


def _attributes(*rows: tuple[str, tuple[type, ...], str]) -> dict[str, Attribute]:
    return {
        name: Attribute(
            name, types, meaning, name not in (*_MARKERS, *_LATER), name in _JSON
        )
        for name, types, meaning in rows
    }


ATTRIBUTES = _attributes(
    ("run_id", _TEXT, "<algorithm>-<mode>-<dataset>-s<seed>-<hash>"),
    ("algorithm", _TEXT, "registry name of the algorithm"),
    ("mode", _TEXT, "sync or async"),
    ("dataset", _TEXT, "name of the data store"),
    ("model", _TEXT, "name of the model"),
    ("partition", _TEXT, "how the parameters are split into blocks"),
    ("seed", _COUNT, "seed of the run"),
    ("config", _TEXT, "the whole configuration"),
    ("status", _TEXT, "how the run ended: complete, interrupted, diverged, …"),
    ("stop_reason", _TEXT, "why it stopped"),
    ("test_accuracy", _MAYBE, "final accuracy on the whole test set"),
    ("train_loss", _MAYBE, "final loss on a fixed part of the training data"),
    ("n_loss_evals", _COUNT, "scalar losses scored"),
    ("n_samples", _COUNT, "samples passed forward"),
    ("n_gradient_evals", _COUNT, "back-propagations"),
    ("bytes_moved", _COUNT, "bytes of all messages"),
    ("wall_time_s", _NUMBER, "seconds since the first update, no evaluations"),
    ("eval_time_s", _NUMBER, "seconds of scoring train, validation and test sets"),
    ("total_time_s", _NUMBER, "seconds since the command's start"),
    ("n_reruns", _COUNT, "futures that were run again after a death"),
    ("n_workers", _COUNT, "workers at the end"),
    ("worker_names", (list, tuple), "names that `worker` points into"),
    ("params_sha256", _TEXT, "sha256 of the final parameters"),
    ("git_commit", _TEXT, "commit of the code, empty outside a checkout"),
    ("git_dirty", (bool,), "whether the checkout had changes"),
    ("versions", _TEXT, "package versions"),
    ("hardware", _TEXT, "processor, cores, memory, devices"),
    ("layout", _TEXT, "names and shapes of the parameters, in order"),
    ("user_code", _TEXT, "hashes of the user's own code; none where all is built in"),
    ("network", _TEXT, "the network as torch prints it"),
    ("network_outputs", _TEXT, "its outputs and losses on a fixed batch"),
    ("rules", _TEXT, "changes of arithmetic that the run follows, by name"),
    ("complete", (bool,), "the store's marker, written last"),
    ("content_sha256", _TEXT, "hash of the store's content"),
)


def describe(name: str) -> dict[str, str]:
    """Return the ``long_name``, ``units`` and ``description`` of a result variable.

    Raises
    ------
    KeyError — if ``name`` is not in the registry.
    """
    if name not in VARIABLES:
        raise KeyError(
            f"`name` must be a registered result variable; got {name!r}. "
            "Add it to `pipeline/schema.py`."
        )
    return VARIABLES[name].attrs


def variable(name: str, values: Any) -> xr.Variable:
    """Return ``values`` as the registered variable: its dims, dtype and attributes."""
    attrs = describe(name)
    spec = VARIABLES[name]
    return xr.Variable(spec.dims, np.asarray(values, dtype=spec.dtype), attrs)


def check_schema(ds: xr.Dataset) -> None:
    """Check one run's dataset against the registry.

    The store's own markers (``complete``, ``content_sha256``) may be absent: they are
    written after the check. Further attributes are allowed, further variables are not.

    Raises
    ------
    ValueError — naming the run and every variable and attribute that is missing,
    unknown or of the wrong type, dims, dtype or units.
    """
    problems = [
        *(p for spec in VARIABLES.values() for p in _variable_problems(ds, spec)),
        *(
            f"`{name}` must be registered; got an unknown variable over {ds[name].dims}"
            for name in ds.variables
            if name not in VARIABLES and name not in ds.dims
        ),
        *(p for spec in ATTRIBUTES.values() for p in _attribute_problems(ds, spec)),
    ]
    if problems:
        raise ValueError(
            f"The dataset of run {ds.attrs.get('run_id', '?')!r} must follow the "
            f"result schema; got {len(problems)} difference(s):\n  - "
            + "\n  - ".join(problems)
            + "\nBuild variables with `pipeline.schema.variable`."
        )


def _variable_problems(ds: xr.Dataset, spec: Variable) -> list[str]:
    if spec.name not in ds.variables:
        return [f"`{spec.name}` must be present; got none"] if spec.required else []
    found = ds.variables[spec.name]
    problems = []
    if found.dims != spec.dims:
        problems.append(f"`{spec.name}` must have dims {spec.dims}; got {found.dims}")
    if found.dtype != np.dtype(spec.dtype):
        problems.append(
            f"`{spec.name}` must have dtype {spec.dtype}; got {found.dtype}"
        )
    found_attrs = {key: found.attrs.get(key) for key in ("units", "long_name")}
    problems.extend(
        f"`{spec.name}` must have {key} {spec.attrs[key]!r}; got {value!r}"
        for key, value in found_attrs.items()
        if value != spec.attrs[key]
    )
    return problems


def _attribute_problems(ds: xr.Dataset, spec: Attribute) -> list[str]:
    if spec.name not in ds.attrs:
        return (
            [f"attribute `{spec.name}` must be present; got none"]
            if spec.required
            else []
        )
    value = ds.attrs[spec.name]
    if isinstance(value, bool) and bool not in spec.types:
        value_fits = False
    else:
        value_fits = isinstance(value, spec.types)
    if not value_fits:
        wanted = " or ".join(t.__name__ for t in spec.types)
        return [f"attribute `{spec.name}` must be {wanted}; got {value!r}"]
    if spec.json:
        try:
            json.loads(value)
        except ValueError as err:
            return [
                f"attribute `{spec.name}` must hold JSON; got {value[:40]!r} ({err})"
            ]
    return []
