"""Models: four small classifiers, and the user's own by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from blocks.dotted import is_dotted, load_callable
from blocks.networks import ImageShape, cifar_cnn, lenet, mlp, resnet8
from blocks.usercode import UserCodeError, calling, check_logits, secluded

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "cifar_cnn": cifar_cnn,
    "resnet8": resnet8,
}
_GIVEN = ("image_shape", "n_classes")


def build_model(
    name: str,
    image_shape: ImageShape,
    n_classes: int,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Return a freshly initialised classifier from images to logits.

    Weights are torch's default initialisation for each layer, a function of the seed
    alone: the global generators are put aside meanwhile, so that global randomness is
    neither used nor disturbed. A user's factory may draw from those of torch, numpy and
    Python; one that draws from elsewhere (a GPU's generator, an unseeded one of its
    own) is no function of the seed (``blocks.purity`` finds it).

    Parameters
    ----------
    name : "mlp" (options ``hidden=(32,)``, ``activation="relu"``), "lenet",
        "cifar_cnn", "resnet8" (option ``norm="group"`` or ``"batch"``), or
        "package.module:factory", called with ``image_shape=``, ``n_classes=`` and the
        options; it must return a module.
    image_shape : (channels, height, width) — sides of at least 8 for the convolutional
        models.
    n_classes : int — at least 2.
    seed : int — 0 ≤ seed < 2**63.
    options : settings of the chosen model.

    Returns
    -------
    nn.Module — (n, C, H, W) float32 → (n, n_classes) float32, in evaluation mode, on
    the CPU.

    Raises
    ------
    ValueError — if the name, an option or the shape is not allowed, or the user's
        factory cannot be imported, cannot be called, or answers something else.
    """
    shape = _checked_shape(image_shape)
    if n_classes < 2:
        raise ValueError(
            f"`n_classes` must be at least 2; got {n_classes}. Check the data's labels."
        )
    own = is_dotted(name)
    if not own and name not in MODELS:
        allowed = ", ".join(f'"{known}"' for known in MODELS)
        raise ValueError(
            f'`model` must be one of {allowed} or "package.module:factory"; '
            f"got {name!r}. Choose one."
        )
    factory = load_callable(name, "model") if own else MODELS[name]
    _check_options(name, factory, options)
    if own:
        return _own_module(name, factory, shape, n_classes, seed, options)
    with secluded(seed):
        module = factory(image_shape=shape, n_classes=n_classes, **options)
    return module.eval()


def _checked_shape(image_shape: ImageShape) -> ImageShape:
    if len(image_shape) != 3 or any(int(side) < 1 for side in image_shape):
        raise ValueError(
            "`image_shape` must be (channels, height, width), all positive; got "
            f"{tuple(image_shape)}. Take it from the data store."
        )
    channels, height, width = (int(side) for side in image_shape)
    return channels, height, width


def _check_options(
    name: str, factory: Callable[..., Any], options: dict[str, Any]
) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # a compiled callable shows none; its own error must do
        return
    try:
        signature.bind(image_shape=(1, 8, 8), n_classes=2, **options)
    except TypeError as err:
        allowed = [p for p in signature.parameters if p not in _GIVEN]
        raise ValueError(
            f"`model` = {name!r} must be callable with `image_shape`, `n_classes` and "
            f"options among {allowed}; got options {sorted(options)} ({err}). "
            "Mend `model.options` or the factory."
        ) from err


def _own_module(
    name: str,
    factory: Callable[..., object],
    image_shape: ImageShape,
    n_classes: int,
    seed: int,
    options: dict[str, Any],
) -> nn.Module:
    """Build a network with the user's factory, and try it on two images."""
    advice = "Mend the factory, or `model.options`."
    with secluded(seed):
        with calling("model", name, "build its network without an error", advice):
            module = factory(image_shape=image_shape, n_classes=n_classes, **options)
        if not isinstance(module, nn.Module):
            raise UserCodeError(
                f"`model` = {name!r} must return a torch.nn.Module; got "
                f"{type(module).__name__}. Return the module itself."
            )
        # In the same seclusion: lazy layers draw their weights at the first call.
        with calling("model", name), torch.no_grad():
            answer = module.eval()(torch.zeros((2, *image_shape)))
    check_logits(name, answer, 2, n_classes)
    return module
