"""Fill every setting that was left open, so that the record says what was used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from blocks.batched import best_probe_form, check_form
from blocks.layout import Layout
from blocks.models import build_model
from blocks.units import find_layers
from pipeline.config import RunConfig
from pipeline.data_store import DataStore

MIN_SIDE = 16  # pixels; smaller images have no neighbours to speak of


def resolve(config: RunConfig, data: DataStore) -> RunConfig:
    """Return ``config`` with the algorithm's defaults and evaluation form filled in.

    ``loss_samples`` is cut to the training samples there are, ``evaluation_form``
    follows the fixed table of ``blocks.batched`` for the model and the device.

    Raises
    ------
    ValueError — if the model cannot be built, or there are fewer samples than shards.
    """
    algorithm = config.algorithm
    defaults = dict(algorithm.defaults)
    if config.custom_blocks:
        defaults["blocks"] = "custom"
    wanted = config.loss_samples or defaults.get("loss_samples", data.n_train)
    n_loss = min(wanted, data.n_train)
    if n_loss < config.n_shards:
        raise ValueError(
            f"`loss_samples` must be at least `n_shards` = {config.n_shards}; got "
            f"{n_loss}. Use more training samples or fewer shards."
        )
    module = network(config, data)
    form = config.evaluation_form
    if form == "auto":
        form = best_probe_form(module, config.device, algorithm.n_probes)
    check_form(form, module)
    redraw = config.redraw_every
    blocks = config.blocks or fitting(defaults.get("blocks", "all"), module)
    nodes, machines = replicas(config, data.n_train)
    return config.model_copy(
        update={
            "nodes": nodes,
            "machines": machines,
            "algorithm": with_images(algorithm, module, data.image_shape),
            "blocks": blocks if algorithm.blockwise else "all",
            "loss_samples": n_loss,
            "redraw_every": defaults.get("redraw_every", 0)
            if redraw is None
            else redraw,
            "evaluation_form": form,
        }
    )


def fitting(blocks: str, module: nn.Module) -> str:
    """Return a default partition with no more blocks than a network's units allow."""
    kind, _, number = blocks.partition(":")
    if kind != "by_unit":
        return blocks
    layers = find_layers(module, Layout.from_module(module))
    if not layers:
        return "by_layer"
    n_hidden = sum(layer.n_units for layer in layers[:-1])
    return f"by_unit:{min(int(number), n_hidden + 1)}"


def network(config: RunConfig, data: DataStore) -> nn.Module:
    """The run's network as it starts."""
    return build_model(
        config.model.name,
        data.image_shape,
        data.n_classes,
        seed=config.seed,
        **config.model.arguments(),
    )


def count_layers(config: RunConfig, data: DataStore) -> int:
    """Layers of the run's network."""
    return len(Layout.from_module(network(config, data)).layers)


def replicas(config: RunConfig, n_train: int) -> tuple[int | None, int | None]:
    """Return how many replicas there are, and machines; (None, None) for blocks.

    Raises
    ------
    ValueError — if there are more replicas than samples, or machines than replicas.
    """
    algorithm = config.algorithm
    if algorithm.blockwise:
        return None, None
    nodes = config.nodes or algorithm.defaults.get("nodes", 1)
    machines = config.machines or min(algorithm.defaults.get("machines", 1), nodes)
    for name, value, most in (("nodes", nodes, n_train), ("machines", machines, nodes)):
        if value > most:
            raise ValueError(
                f"`{name}` must be at most {most} here; got {value}. Lower it."
            )
    return nodes, machines


def with_images(algorithm: Any, module: nn.Module, shape: tuple[int, int, int]) -> Any:
    """Return ND-CAO told which parameters are weight images, if there are any.

    That is so when θ starts with the weights of a dense layer that reads whole images
    of at least ``MIN_SIDE`` pixels a side; see ``NDCAO.images``.
    """
    first = Layout.from_module(module).segments[0]
    channels, height, width = shape
    reads_images = len(first.shape) == 2 and first.shape[1] == channels * height * width
    wanted = getattr(algorithm, "images", 0) is None and algorithm.smoothing > 0
    if not (wanted and reads_images and min(height, width) >= MIN_SIDE):
        return algorithm
    if algorithm.n_probes > 1:
        return algorithm
    return replace(algorithm, images=(first.shape[0] * channels, height, width))
