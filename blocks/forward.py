"""A module as a function of one flat parameter vector: logits and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from blocks.batched import Form, best_form, bmm_logits, check_form, vmap_logits
from blocks.flat import aligned, flatten
from blocks.held import HeldModule
from blocks.layout import Layout
from blocks.losses import LossFunction

_VMAP = ("run under `torch.func.vmap`", 'Set `evaluation_form` to "loop".')


class FlatModel:
    """A module whose parameters and float buffers are views of two flat vectors.

    A forward pass costs one copy of θ and one call of the module. Every answer is a
    function of the arguments alone, bit for bit: the vectors are set before each call,
    integer buffers are put back after training passes, and inputs are computed on in
    memory aligned as torch aligns its own, so that no result depends on where a
    caller's array happens to lie. The module given is copied, not touched. One call
    runs at a time; other threads wait.

    Parameters
    ----------
    module : any module; its values at this moment are the initial ones. Trainable
        parameters and float buffers are held in float32, whatever they were.
    device : where it computes; parameters and inputs are expected there.
    user : "package.module:factory" of a network that is the user's own, which is then
        given copies of all inputs; "" for ours.
    """

    def __init__(
        self, module: nn.Module, device: torch.device | str = "cpu", user: str = ""
    ) -> None:
        self._held = HeldModule(module, device, user)

    def __reduce__(self) -> tuple[type[FlatModel], tuple[nn.Module, torch.device, str]]:
        module = self.to_module(self.initial_params())
        return FlatModel, (module, self.device, self.user)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._held.device

    @property
    def user(self) -> str:
        """Name of a network that is the user's own; "" for ours."""
        return self._held.user

    @property
    def module(self) -> nn.Module:
        """The module held, for its structure: its values are whatever was set last."""
        return self._held.module

    @property
    def layout(self) -> Layout:
        """Names, shapes and places of parameters and float buffers."""
        return self._held.layout

    @property
    def n_params(self) -> int:
        """P, the length of θ."""
        return self.layout.n_params

    @property
    def n_buffers(self) -> int:
        """B, elements of all float buffers together."""
        return self.layout.n_buffers

    def initial_params(self) -> Tensor:
        """Return a copy of the module's own parameters, (P,) float32."""
        return self._held.first_theta.clone()

    def initial_buffers(self) -> Tensor:
        """Return a copy of the module's own float buffers, (B,) float32."""
        return self._held.first_buffers.clone()

    def to_module(self, params: Tensor, buffers: Tensor | None = None) -> nn.Module:
        """Return a module of its own that holds these values, in evaluation mode.

        Parameters
        ----------
        params : (P,) float32.
        buffers : (B,) float32; ``None``: the initial ones.
        """
        return self._held.copy(params, buffers)

    def forward(
        self,
        params: Tensor,
        x: Tensor,
        buffers: Tensor | None = None,
        training: bool = False,
        seed: int = 0,
    ) -> Tensor:
        """Return the logits of one parameter vector; builds no autograd graph.

        Parameters
        ----------
        params : (P,) float32.
        x : (n, C, H, W) float32.
        buffers : (B,) float32; ``None``: the initial ones. Never modified.
        training : training mode (batch statistics, dropout), else evaluation mode.
        seed : int — of the module's own randomness in training mode.

        Returns
        -------
        (n, n_classes) float32 — new tensor.

        Raises
        ------
        ValueError — if ``params`` or ``buffers`` has another length or dtype.
        TypeError — if ``x`` is not float32.
        """
        x = aligned(x)
        with torch.no_grad(), self._held.holding(params, buffers):
            if not training:
                return self._held.evaluate(x)
            with self._held.training(seed):
                return self._held.logits(x)

    def logits_many(
        self,
        thetas: Tensor,
        x: Tensor,
        form: Form = "auto",
        buffers: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of K parameter vectors on the same inputs.

        The forms give the same numbers up to rounding (1e-5); a run must keep to one.

        Parameters
        ----------
        thetas : (K, P) float32.
        x : (n, C, H, W) float32.
        form : "loop" (one pass a vector), "vmap" (``torch.func.vmap``), "bmm" (explicit
            batched products, perceptrons only) or "auto" (``best_form``).
        buffers : (B,) float32, shared by all K; ``None``: the initial ones.

        Returns
        -------
        (K, n, n_classes) float32 — contiguous.

        Raises
        ------
        ValueError — if the form is unknown or does not suit the module, or shapes
            differ.
        """
        if thetas.ndim != 2 or not len(thetas):
            raise ValueError(
                f"`thetas` must have shape (K, {self.n_params}) with K ≥ 1; got "
                f"{tuple(thetas.shape)}. Stack the parameter vectors."
            )
        if form == "auto":
            form = best_form(self._held.module, self.device.type, len(thetas))
        check_form(form, self._held.module)
        if form == "pairs":
            raise ValueError(
                '`form` must not be "pairs" for parameter vectors; got it. '
                "Score joint probes with `blocks.probe_losses`, or choose another form."
            )
        x, thetas = aligned(x), aligned(thetas)
        with torch.no_grad(), self._held.holding(thetas[0], buffers):
            if form == "vmap":
                with self._held.door(*_VMAP):
                    rows = self._held.lent(x)
                    return vmap_logits(self._held.module, self.layout, thetas, rows)
            if form == "bmm":
                return bmm_logits(self._held.module, self.layout, thetas, x)
            first = self._held.evaluate(x)
            logits = first.new_empty((len(thetas), *first.shape))
            logits[0] = first
            for k in range(1, len(thetas)):
                self._held.theta.copy_(thetas[k])
                logits[k] = self._held.evaluate(x)
            return logits

    def gradient(
        self,
        params: Tensor,
        x: Tensor,
        targets: Tensor,
        loss_function: LossFunction,
        buffers: Tensor | None = None,
        seed: int = 0,
    ) -> tuple[float, Tensor, Tensor | None]:
        """Return the mean loss, its gradient and the float buffers after the pass.

        The pass is in training mode, by back-propagation.

        Parameters
        ----------
        params : (P,) float32.
        x, targets : (n, C, H, W) float32 and (n,) int64.
        loss_function : (logits, targets) → (n,) losses.
        buffers : (B,) float32 before the pass; ``None``: the initial ones.
        seed : int — of the module's own randomness (dropout): give each step its own.

        Returns
        -------
        (loss, (P,) float32 gradient, (B,) float32 new buffers or ``None`` without any).
        """
        with (
            self._held.holding(params, buffers),
            self._held.training(seed),
            torch.enable_grad(),
        ):
            losses = loss_function(self._held.logits(x), targets)
            with self._held.differentiating(loss_function):
                found = torch.autograd.grad(
                    losses.mean(), self._held.params, allow_unused=True
                )
            parts = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(self._held.params, found, strict=True)
            ]
            gradient = flatten(parts, self.n_params, self.device)
            after = self._held.buffers.clone() if self.n_buffers else None
        return float(losses.detach().double().mean()), gradient, after


def calibrate_buffers(
    model: FlatModel, params: Tensor, batches: Sequence[Tensor]
) -> Tensor:
    """Return the float buffers after one pass over batches in training mode.

    For gradient-free methods, which keep the result for the whole run: the running
    statistics of batch normalisation become plain averages over the batches (equal
    weights), not moving ones. Dropout is off. Other float buffers are what the module's
    own training passes make of them.

    Parameters
    ----------
    model : FlatModel.
    params : (P,) float32 — the initial weights.
    batches : inputs (n, C, H, W) float32, in order; the scoring subset.

    Returns
    -------
    (B,) float32 — new tensor; empty for a model without float buffers.

    Raises
    ------
    ValueError — if there are buffers but no batch.
    """
    if model.n_buffers == 0:
        return model.initial_buffers()
    if not len(batches):
        raise ValueError(
            "`batches` must hold at least one batch; got none. "
            "Pass the scoring subset's inputs."
        )
    held = model._held
    with torch.no_grad(), held.holding(params, None), held.training(seed=0):
        momenta = {}
        for part in held.module.modules():
            if isinstance(part, _NormBase) and part.track_running_stats:
                part.reset_running_stats()
            if isinstance(part, _BatchNorm):
                momenta[part] = part.momentum
                part.momentum = None  # torch's sign for a plain average
            if isinstance(part, _DropoutNd):
                part.eval()
        try:
            for x in batches:
                held.called(x)
        finally:
            for part, momentum in momenta.items():
                part.momentum = momentum
        return held.buffers.clone()
