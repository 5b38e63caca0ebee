"""A module as a function of one flat parameter vector: logits and gradients."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from blocks.batched import Form, best_form, bmm_logits, check_form, vmap_logits
from blocks.flat import aligned, as_views, check_flat, flatten
from blocks.layout import Layout
from blocks.losses import LossFunction


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
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.device: torch.device = torch.device(device)
        self.layout = Layout.from_module(module)
        self._module = copy.deepcopy(module).float().to(self.device).eval()
        named = dict(self._module.named_parameters())
        self._params = [named[s.name] for s in self.layout.segments]
        self._theta = as_views(
            self._params, self.layout.segments, self.n_params, self.device
        )
        floats = dict(self._module.named_buffers())
        self._buffers = as_views(
            [floats[s.name] for s in self.layout.buffer_segments],
            self.layout.buffer_segments,
            self.n_buffers,
            self.device,
        )
        self._counts = [b for b in floats.values() if not b.is_floating_point()]
        self._first_counts = [count.clone() for count in self._counts]
        self._first_theta = self._theta.clone()
        self._first_buffers = self._buffers.clone()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[FlatModel], tuple[nn.Module, torch.device]]:
        return FlatModel, (self.to_module(self._first_theta), self.device)

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
        return self._first_theta.clone()

    def initial_buffers(self) -> Tensor:
        """Return a copy of the module's own float buffers, (B,) float32."""
        return self._first_buffers.clone()

    def to_module(self, params: Tensor, buffers: Tensor | None = None) -> nn.Module:
        """Return a module of its own that holds these values, in evaluation mode.

        Parameters
        ----------
        params : (P,) float32.
        buffers : (B,) float32; ``None``: the initial ones.
        """
        with self._set(params, buffers):
            module = copy.deepcopy(self._module)
        floats = dict(module.named_buffers())
        for segment in self.layout.buffer_segments:
            # A copied view would still share one storage with its neighbours.
            floats[segment.name].data = floats[segment.name].data.clone()
        return module.eval()

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
        with torch.no_grad(), self._set(params, buffers):
            if not training:
                logits: Tensor = self._module(x)
                return logits
            with self._training(seed):
                trained: Tensor = self._module(x)
                return trained

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
            form = best_form(self._module, self.device.type, len(thetas))
        check_form(form, self._module)
        x, thetas = aligned(x), aligned(thetas)
        with torch.no_grad(), self._set(thetas[0], buffers):
            if form == "vmap":
                return vmap_logits(self._module, self.layout, thetas, x)
            if form == "bmm":
                return bmm_logits(self._module, self.layout, thetas, x)
            first: Tensor = self._module(x)
            logits = first.new_empty((len(thetas), *first.shape))
            logits[0] = first
            for k in range(1, len(thetas)):
                self._theta.copy_(thetas[k])
                logits[k] = self._module(x)
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
        x = aligned(x)
        with self._set(params, buffers), self._training(seed), torch.enable_grad():
            losses = loss_function(self._module(x), targets)
            found = torch.autograd.grad(losses.mean(), self._params, allow_unused=True)
            parts = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(self._params, found, strict=True)
            ]
            gradient = flatten(parts, self.n_params, self.device)
            after = self._buffers.clone() if self.n_buffers else None
        return float(losses.detach().double().mean()), gradient, after

    @contextlib.contextmanager
    def _set(self, params: Tensor, buffers: Tensor | None) -> Iterator[None]:
        """Hold the module with these values."""
        check_flat("params", params, self.n_params)
        if buffers is None:
            buffers = self._first_buffers
        check_flat("buffers", buffers, self.n_buffers)
        with self._lock:
            self._theta.copy_(params)
            if self.n_buffers:
                self._buffers.copy_(buffers)
            yield

    @contextlib.contextmanager
    def _training(self, seed: int) -> Iterator[None]:
        """Training mode with seeded randomness; integer buffers are put back."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            if cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            self._module.train()
            try:
                yield
            finally:
                self._module.eval()
                for count, first in zip(self._counts, self._first_counts, strict=True):
                    count.copy_(first)


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
    with torch.no_grad(), model._set(params, None), model._training(seed=0):
        momenta = {}
        for part in model._module.modules():
            if isinstance(part, _NormBase) and part.track_running_stats:
                part.reset_running_stats()
            if isinstance(part, _BatchNorm):
                momenta[part] = part.momentum
                part.momentum = None  # torch's sign for a plain average
            if isinstance(part, _DropoutNd):
                part.eval()
        try:
            for x in batches:
                model._module(aligned(x))
        finally:
            for part, momentum in momenta.items():
                part.momentum = momentum
        return model._buffers.clone()
