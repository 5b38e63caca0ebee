"""Fill every setting that was left open, so that the record says what was used."""

from __future__ import annotations

from blocks.batched import best_form
from blocks.models import build_model
from pipeline.config import RunConfig
from pipeline.data_store import DataStore


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
    module = build_model(
        config.model.name,
        data.image_shape,
        data.n_classes,
        seed=config.seed,
        **config.model.arguments(),
    )
    form = config.evaluation_form
    if form == "auto":
        form = best_form(module, config.device, algorithm.n_probes)
    redraw = config.redraw_every
    blocks = config.blocks or defaults.get("blocks", "all")
    return config.model_copy(
        update={
            "blocks": blocks if algorithm.blockwise else "all",
            "loss_samples": n_loss,
            "redraw_every": defaults.get("redraw_every", 0)
            if redraw is None
            else redraw,
            "evaluation_form": form,
        }
    )
