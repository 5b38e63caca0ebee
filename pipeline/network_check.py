"""What a network computes on a fixed batch: whether it is still the one of a run.

Code depends on more than itself: on files and variables that it reads. So a run records
its network's text and outputs, which need no data set to be taken again.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blocks.forward import FlatModel
from blocks.losses import LossFunction
from blocks.networks import ImageShape

N_IMAGES = 4
SAME = 1e-5  # of the largest output: what rounding may make on one platform
ELSEWHERE = 1e-2  # and elsewhere


def fixed_images(shape: ImageShape) -> Tensor:
    """(4, C, H, W) float32 in [−1.75, 1.75): the same numbers everywhere."""
    n = N_IMAGES * int(np.prod(shape))
    mixed = (np.arange(1, n + 1, dtype=np.uint64) * 2654435761) % 2**32
    values = (mixed / 2.0**32 - 0.5) * 3.5
    return torch.tensor(values.reshape(N_IMAGES, *shape), dtype=torch.float32)


def answers(
    model: FlatModel,
    params: Tensor,
    buffers: Tensor | None,
    shape: ImageShape,
    loss_function: LossFunction | None = None,
) -> dict[str, Any]:
    """Outputs of the fixed images in evaluation mode, and their losses if asked for."""
    images = fixed_images(shape).to(model.device)
    logits = model.forward(params, images, buffers)
    found = {"outputs": _numbers(logits)}
    if loss_function is not None:
        targets = torch.arange(N_IMAGES, device=model.device) % logits.shape[1]
        with torch.no_grad():
            found["losses"] = _numbers(loss_function(logits, targets))
    return found


def _numbers(values: Tensor) -> list[Any]:
    numbers = values.detach().double().cpu().numpy()
    rounded = [float(f"{x:.8g}") for x in numbers.ravel()]
    listed: list[Any] = np.reshape(rounded, numbers.shape).tolist()
    return listed


def differ(recorded: dict[str, Any], now: dict[str, Any], *, elsewhere: bool) -> str:
    """Say how outputs differ by more than rounding, as a clause; "" if they do not.

    Parameters
    ----------
    elsewhere : on another platform than where they were recorded.
    """
    limit = ELSEWHERE if elsewhere else SAME
    for name in ("outputs", "losses"):
        if name not in recorded or name not in now:
            continue
        old, new = np.asarray(recorded[name]), np.asarray(now[name])
        if old.shape != new.shape:
            return f"{name} of shape {new.shape}, which were of {old.shape}"
        size = float(np.abs(old[np.isfinite(old)]).max(initial=0.0))
        near = np.isclose(new, old, rtol=0, atol=limit * size, equal_nan=True)
        if not near.all():
            place = tuple(np.argwhere(~near)[0])
            return f"{name} such as {new[place]:.5g}, which were {old[place]:.5g}"
    return ""


def read(text: str) -> dict[str, Any]:
    """Read recorded answers.

    Raises
    ------
    ValueError — if they are none.
    """
    try:
        found = {k: np.asarray(v, dtype=float) for k, v in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as err:
        raise ValueError(
            f"`network_outputs` must be numbers; got {text[:60]!r}. Restore the run "
            "from a copy."
        ) from err
    return found


def check_size(run_id: str, kept: int, n_params: int) -> None:
    """Refuse parameters that a network, as it is built now, has no place for.

    Raises
    ------
    ValueError — if the network has another number of parameters than the run.
    """
    if kept != n_params:
        raise ValueError(
            f"`model` must build the network that {run_id} was trained with, of {kept} "
            f"parameters; got one of {n_params}. Its code, or a file or variable that "
            "it reads, has changed: put it back as it was, or train anew with --again."
        )
