"""Parameters to start from: another run's, or a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blocks.layout import Layout, Segment
from blocks.models import build_model
from pipeline.config import RunConfig
from pipeline.data_store import DataStore
from pipeline.places import given_path

Values = tuple[np.ndarray | None, np.ndarray | None]


def initial_values(config: RunConfig, data: DataStore, results: Path) -> Values:
    """Return (P,) parameters and (B,) buffers of ``config.init``; (None, None) without.

    Raises
    ------
    FileNotFoundError — if there is no such run or file.
    ValueError — if its tensors do not fit the model.
    """
    if config.init is None:
        return None, None
    module = build_model(
        config.model.name,
        data.image_shape,
        data.n_classes,
        seed=config.seed,
        **config.model.arguments(),
    )
    layout = Layout.from_module(module)
    source = given_path(config.init, "init")
    if source.suffix == ".safetensors":
        return _from_file(source, layout)
    from pipeline.run_store import open_run
    from pipeline.runs import find_run, store_path

    ds = open_run(store_path(*find_run(config.init, results)))
    params = ds["params"].values
    if params.size != layout.n_params:
        raise ValueError(
            f"`init` must have the model's {layout.n_params} parameters; run "
            f"{config.init} has {params.size}. Choose a run of the same model."
        )
    theirs = [shape for _, shape in json.loads(ds.attrs["layout"])]
    ours = [list(segment.shape) for segment in layout.segments]
    if theirs != ours:
        raise ValueError(
            f"`init` must have parameters of the model's shapes {ours}; run "
            f"{config.init} has {theirs}. Choose a run of the same model."
        )
    return params, ds["buffers"].values if "buffers" in ds else None


def _from_file(path: Path, layout: Layout) -> Values:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise FileNotFoundError(f"`init` must be an existing file or run; got {path}.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as err:
        raise ValueError(
            f"`init` must be a safetensors file; got {path}: {err}. Export it again."
        ) from err
    return (
        _flat(tensors, layout.segments, path, np.zeros(layout.n_params, np.float32)),
        _flat(
            tensors,
            layout.buffer_segments,
            path,
            np.zeros(layout.n_buffers, np.float32),
        )
        if layout.n_buffers
        else None,
    )


def _flat(
    tensors: dict[str, np.ndarray],
    segments: Sequence[Segment],
    path: Path,
    out: np.ndarray,
) -> np.ndarray:
    for segment in segments:
        found = tensors.get(segment.name)
        if found is None or found.shape != tuple(segment.shape):
            got = "nothing" if found is None else f"shape {found.shape}"
            raise ValueError(
                f"`init` must hold `{segment.name}` of shape {tuple(segment.shape)}; "
                f"got {got} in {path}. Export it from the same model."
            )
        out[segment.start : segment.stop] = found.reshape(-1)
    return out
