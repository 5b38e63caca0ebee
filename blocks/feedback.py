"""Local learning in a chain of layers: the output's error in the place of a gradient.

A chain is cut before each weight layer. Each segment (a layer and what follows it up
to the next) differentiates its own output alone; what comes from above is not the
next segment's gradient but the error at the logits times a fixed matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from blocks.activity_links import is_plain
from blocks.algorithm import step_rng
from blocks.flat import flatten
from blocks.forward import FlatModel
from blocks.losses import LossFunction
from blocks.usercode import check_logits

Feedback = Callable[[int, int], Tensor]  # (n_classes, width) → (n_classes, width)

_STREAM = 5  # of `step_rng`: the feedback matrix, the same for every node


@dataclass(frozen=True, slots=True)
class GaussianFeedback:
    """One Gaussian matrix of which a layer of width m takes the first m columns.

    A slice is divided by √(m · n_classes): its Frobenius norm is about 1 at any width.

    Parameters
    ----------
    seed : int — of the matrix, 0 ≤ seed < 2**63.
    """

    seed: int

    def __call__(self, n_classes: int, width: int) -> Tensor:
        """(n_classes, width) float32 — new tensor on the CPU."""
        columns = torch.tensor(_columns(self.seed, n_classes, width))
        return columns.T / math.sqrt(width * n_classes)


@lru_cache(maxsize=16)
def _columns(seed: int, n_classes: int, width: int) -> np.ndarray:
    """(width, n_classes) float32: the first columns, whatever the width, are alike."""
    rng = step_rng(seed, 0, -1, _STREAM)
    return rng.standard_normal((width, n_classes)).astype(np.float32)


def segments(module: nn.Module) -> list[nn.Sequential]:
    """Cut a chain before each layer that has weights.

    A layer has weights if it holds a trainable array of two or more dimensions. Scales,
    shifts, activations and pooling belong to the layer before them; what comes before
    the first layer belongs to that one.

    Parameters
    ----------
    module : one layer, or layers in sequence (nested or not).

    Returns
    -------
    list of Sequential — over the module's own layers; at least one.

    Raises
    ------
    ValueError — if the module is not such a chain, or uses a parameter twice.
    """
    cut: list[list[nn.Module]] = [[]]
    begun = False
    for name, link in _links(module):
        n_weights = sum(p.requires_grad and p.dim() >= 2 for p in link.parameters())
        if n_weights > 1:
            raise ValueError(
                "`model` must be a chain of single layers for direct feedback; got "
                f"{type(link).__name__} with {n_weights} weight arrays"
                f"{f' at `{name}`' if name else ''}. Build it of layers in "
                "`torch.nn.Sequential`, or choose another algorithm."
            )
        if n_weights and begun:
            cut.append([])
        begun = begun or bool(n_weights)
        cut[-1].append(link)
    chain = [nn.Sequential(*links).train(module.training) for links in cut]
    _check_own(chain)
    return chain


def _links(module: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """Layers in the order of the pass; only a plain sequence is opened."""
    if not is_plain(module):
        return [(name, module)]
    found = []
    for child_name, child in module._modules.items():
        if child is not None:
            found += _links(child, f"{name}.{child_name}" if name else child_name)
    return found


def _check_own(chain: Sequence[nn.Module]) -> None:
    """Every parameter must be in one segment only."""
    seen: set[int] = set()
    for index, segment in enumerate(chain):
        own = {id(p): n for n, p in segment.named_parameters()}
        shared = [name for key, name in own.items() if key in seen]
        if shared:
            raise ValueError(
                "`model` must use every parameter in one layer only for direct "
                f"feedback; got `{shared[0]}` of segment {index} again. Untie the "
                "layers, or choose another algorithm."
            )
        seen |= own.keys()


def direct_feedback(
    model: FlatModel,
    params: Tensor,
    x: Tensor,
    targets: Tensor,
    loss_function: LossFunction,
    feedback: Feedback,
    buffers: Tensor | None = None,
    seed: int = 0,
) -> tuple[float, Tensor, Tensor | None]:
    """Return the mean loss, direct feedback's stand-in for its gradient, and buffers.

    With e (n, n_classes) the derivative of the mean loss by the logits, the last
    segment's parameters get their true gradient; those of segment l get the derivative
    of ⟨y_l, e B_l⟩, y_l its output and B_l = ``feedback(n_classes, width of y_l)``.
    The inputs of every segment are constants. The pass is in training mode.

    Parameters
    ----------
    params, buffers : (P,) and (B,) float32; buffers ``None``: the initial ones.
    x, targets : (n, C, H, W) float32 and (n,) int64.
    loss_function : (logits, targets) → (n,) losses.
    feedback : see above; called once for each segment but the last.
    seed : int — of the module's own randomness (dropout).

    Returns
    -------
    (loss, (P,) float32, (B,) float32 new buffers or ``None`` without any).

    Raises
    ------
    ValueError — if the module is no chain (see ``segments``).
    """
    held = model._held
    with held.holding(params, buffers), held.training(seed), torch.enable_grad():
        chain = segments(held.module)
        with held.door():
            outputs = _pass(chain, held.lent(x), copy=bool(held.user))
        if held.user:
            check_logits(held.user, outputs[-1], len(x))
        logits = outputs[-1].detach().requires_grad_()
        losses = loss_function(logits, targets)
        with held.differentiating(loss_function):
            (error,) = torch.autograd.grad(losses.mean(), logits)
        found: dict[int, Tensor] = {}
        for segment, output in zip(chain[:-1], outputs[:-1], strict=True):
            matrix = feedback(error.shape[1], output[0].numel()).to(error)
            with held.differentiating(loss_function):
                found |= _local(segment, output, (error @ matrix).view(output.shape))
        with held.differentiating(loss_function):
            found |= _local(chain[-1], outputs[-1], error)
        parts = [found.get(id(p), torch.zeros_like(p)) for p in held.params]
        gradient = flatten(parts, model.n_params, model.device)
        after = held.buffers.clone() if model.n_buffers else None
    return float(losses.detach().double().mean()), gradient, after


def _pass(chain: Sequence[nn.Module], x: Tensor, copy: bool) -> list[Tensor]:
    """Outputs of the segments, each with the graph of its own segment only.

    ``copy`` : whether a segment may write to its inputs, which are another's outputs.
    """
    outputs = []
    for segment in chain:
        outputs.append(segment(x))
        x = outputs[-1].detach()
        x = x.clone() if copy else x
    return outputs


def _local(segment: nn.Module, output: Tensor, signal: Tensor) -> dict[int, Tensor]:
    """Derivatives of ⟨output, signal⟩ by the segment's parameters, by their ``id``."""
    own = [p for p in segment.parameters() if p.requires_grad]
    if not own:
        return {}
    found = torch.autograd.grad(output, own, signal, allow_unused=True)
    pairs = zip(own, found, strict=True)
    return {id(p): g for p, g in pairs if g is not None}
