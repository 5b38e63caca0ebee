"""A network linearised at one point: its logits, and products with their Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blocks.forward import FlatModel
from blocks.losses import LossFunction

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Linearised:
    """Network and loss on one minibatch of b samples, in training mode.

    The linear model of the network is p ↦ ``logits + jvp(p)``.
    """

    loss: float
    gradient: Tensor  # (P,) of the mean loss
    buffers: Tensor | None  # (B,) float buffers after the training-mode pass
    logits: Tensor  # (b, n_classes)
    targets: Tensor  # (b,)
    losses: Product  # (b, n_classes) logits → (b,) the run's own per-sample losses
    jvp: Product  # (P,) → (b, n_classes), Jac·p
    vjp: Product  # (b, n_classes) → (P,), Jac'·u

    def counted(self, count: Callable[[], None]) -> Linearised:
        """The same, calling ``count`` at every product with the Jacobian."""
        jvp, vjp = self.jvp, self.vjp

        def ahead(p: Tensor) -> Tensor:
            count()
            return jvp(p)

        def back(u: Tensor) -> Tensor:
            count()
            return vjp(u)

        return replace(self, jvp=ahead, vjp=back)


def linearise(
    model: FlatModel,
    params: Tensor,
    x: Tensor,
    targets: Tensor,
    loss_function: LossFunction,
    buffers: Tensor | None = None,
    seed: int = 0,
) -> Linearised:
    """Return the linear model of a network around ``params``, matrix-free.

    One pass is recorded; after it a product costs about one backward pass, at the same
    dropout mask and batch statistics. Jac·p is the derivative by u of Jac'u, which is
    linear in u: modules must be twice differentiable by torch's reverse mode.

    Parameters
    ----------
    params : (P,) float32.
    x, targets : (b, C, H, W) float32 and (b,) int64.
    loss_function : (logits, targets) → (b,) losses.
    buffers : (B,) float32 before the pass; ``None``: the initial ones.
    seed : int — of the module's own randomness (dropout).
    """
    held, layout = model._held, model.layout
    theta = params.detach().clone().requires_grad_()
    after = (held.first_buffers if buffers is None else buffers).clone()
    # Values of their own: what is recorded must outlive the next call of the model.
    values = {s.name: theta[s.start : s.stop].view(s.shape) for s in layout.segments}
    for s in layout.buffer_segments:
        values[s.name] = after[s.start : s.stop].view(s.shape)
    with (
        torch.enable_grad(),
        held.holding(params, buffers),
        held.training(seed),
    ):
        logits = held.logits(x, values)
    with torch.enable_grad(), held.differentiating(loss_function):
        cotangent = torch.zeros_like(logits, requires_grad=True)
        (pulled,) = torch.autograd.grad(logits, theta, cotangent, create_graph=True)

    def jvp(p: Tensor) -> Tensor:
        with held.differentiating(loss_function):
            return torch.autograd.grad(pulled, cotangent, p, retain_graph=True)[0]

    def vjp(u: Tensor) -> Tensor:
        with held.differentiating(loss_function):
            return torch.autograd.grad(logits, theta, u, retain_graph=True)[0]

    def losses(values: Tensor) -> Tensor:
        return loss_function(values, targets)

    here = logits.detach()
    found, slope = loss_slope(losses, here)
    return Linearised(
        found / len(targets),
        vjp(slope / len(targets)),
        after if layout.n_buffers else None,
        here,
        targets,
        losses,
        jvp,
        vjp,
    )


def loss_slope(losses: Product, logits: Tensor) -> tuple[float, Tensor]:
    """Return the sum of per-sample losses and its gradient by the logits."""
    with torch.enable_grad():
        point = logits.detach().requires_grad_()
        values = losses(point)
        (slope,) = torch.autograd.grad(values.sum(), point)
    return float(values.detach().double().sum()), slope


def loss_curvature(losses: Product, logits: Tensor) -> Product:
    """Return u ↦ H·u, H the Hessian of the summed losses by the logits."""
    with torch.enable_grad():
        point = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(losses(point).sum(), point, create_graph=True)

    def product(u: Tensor) -> Tensor:
        if not slope.requires_grad:  # a loss that is linear in the logits
            return torch.zeros_like(u)
        return torch.autograd.grad(
            slope, point, u, retain_graph=True, materialize_grads=True
        )[0]

    return product
