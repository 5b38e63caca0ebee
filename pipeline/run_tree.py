"""Combined runs as a tree: what they share at the root, updates run by run."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from pipeline.run_arrays import lazy_variable
from pipeline.run_store import stored_run
from pipeline.schema import VARIABLES

__all__ = ["run_tree"]

_RAGGED = {"update", "score"}


def run_tree(ds: xr.Dataset) -> xr.DataTree:
    """Return combined runs as a tree: what they share at the root, a node for each.

    The root has what is over ``run`` and ``eval``. The node of a run, named by its id
    (``<id>~2`` for a second store of that run), has the updates and scores of that run
    alone, at their own length, with the probes and nodes that padding cannot hold;
    Dask arrays in the chunks of the store.

    Parameters
    ----------
    ds : Dataset — from `combine_runs`.
    """
    nodes = {"/": ds.drop_dims(_RAGGED & {*ds.dims})}
    for run_id, store in zip(ds["run_id"].values, ds["store"].values, strict=True):
        name, number = str(run_id), 1
        while name in nodes:
            number += 1
            name = f"{run_id}~{number}"
        run = stored_run(Path(str(store)))
        variables = {
            v.name: (v.dims, lazy_variable(run, v.name), v.attrs)
            for v in VARIABLES.values()
            if _RAGGED & {*v.dims} and v.name in run.attrs["variables"]
        }
        attrs = {"run_id": str(run_id), "store": str(store)}
        nodes[name] = xr.Dataset(variables, attrs=attrs)
    return xr.DataTree.from_dict(nodes)
