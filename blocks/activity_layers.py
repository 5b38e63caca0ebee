"""Layers that can be perturbed, and what one of them learns from its own noise.

With x the inputs of a call and δ = ξ (ℓ⁺ − ℓ⁻)/(2σ²), a dense layer's weights are told
Σ δ x', a convolution's Σ over samples and positions of δ times the patch, those of a
normalisation Σ δ x̂, and every bias Σ δ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from blocks.activity_links import hooked
from blocks.activity_tails import Tail

Sums = dict[int, Tensor]  # by the ``id`` of a parameter: its estimate so far

_DENSE = (nn.Linear,)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)
_Norm = nn.GroupNorm | nn.LayerNorm | _BatchNorm
_KNOWN = (*_DENSE, *_CONVOLUTIONS, *_NORMS)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a layer: what it saw, and the noise on what it answered.

    ``inputs`` are the n samples themselves where all draws share them, else the means
    of the D·n pairs.
    """

    layer: nn.Module
    inputs: Tensor  # (n, …) or (D·n, …)
    noise: Tensor  # (D, n, …), behind the layer's tail
    scale: float  # of the noise that was added, in units of ``noise``
    tail: Tail


def trains(module: nn.Module) -> bool:
    """Whether a module owns a trainable parameter itself."""
    return any(p.requires_grad for p in module.parameters(recurse=False))


def is_layer(module: nn.Module) -> bool:
    """Whether a module owns trainable parameters and is known how to perturb."""
    return (
        trains(module)
        and type(module) in _KNOWN
        and not hooked(module)
        and not (isinstance(module, _BatchNorm) and module.running_mean is None)
    )


def trained_layers(
    module: nn.Module, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a module that have trainable parameters, by name.

    Raises
    ------
    ValueError — if a parameter belongs to a module that cannot be perturbed; named.
    """
    for name, part in module.named_modules(prefix=prefix):
        if not trains(part):
            continue
        if not is_layer(part):
            found = part.named_parameters(name, recurse=False)
            which = next(n for n, p in found if p.requires_grad)
            without = (
                " without running statistics" if isinstance(part, _BatchNorm) else ""
            )
            without = " with hooks" if hooked(part) else without
            raise ValueError(
                "`model` must hold its parameters in dense, convolutional or "
                "normalisation layers for activity perturbation; got "
                f"`{which}` of {type(part).__name__}{without}. Freeze it, build the "
                "model of those layers, or choose another algorithm."
            )
        yield name, part


def add_estimate(sums: Sums, call: Call, weights: Tensor) -> None:
    """Add what one call tells its layer's parameters to their sums, in place.

    Parameters
    ----------
    sums : where it is added, by the ``id`` of the parameter.
    call : inputs and noise.
    weights : (D, n) — (ℓ⁺ − ℓ⁻)/(2σ²D) of each draw and sample.
    """
    shape = (*weights.shape, *[1] * (call.noise.dim() - 2))
    delta = call.noise * (weights / call.scale).view(shape)
    if len(call.inputs) == delta.shape[0] * delta.shape[1]:
        delta = delta.flatten(0, 1)
    else:
        delta = delta.sum(0)
    delta = call.tail.back(delta)
    match call.layer:
        case nn.Linear() as layer:
            _dense(sums, layer, call.inputs, delta)
        case _ConvNd() as layer:
            _convolution(sums, layer, call.inputs, delta)
        case nn.GroupNorm() | nn.LayerNorm() | _BatchNorm() as layer:
            _norm(sums, layer, call.inputs, delta)


def _dense(sums: Sums, layer: nn.Linear, x: Tensor, delta: Tensor) -> None:
    rows = delta.reshape(-1, layer.out_features)
    if layer.weight.requires_grad:
        x = x.reshape(-1, layer.in_features)
        held = sums.get(id(layer.weight))
        if held is None:
            sums[id(layer.weight)] = rows.T @ x
        else:
            held.addmm_(rows.T, x)
    _add(sums, layer.bias, lambda: rows.sum(0))


def _convolution(sums: Sums, layer: _ConvNd, x: Tensor, delta: Tensor) -> None:
    """Σ δ·patch' by the kernel that computes just that.

    Several times faster than unfolding and one product, at every shape measured (one
    thread, lenet's, cifar_cnn's and resnet8's layers: 3 to 14 times).
    """
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode)
        padding = (0,) * len(layer.stride)

    def weight() -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(
            *(delta, x, layer.weight, None, layer.stride, padding, layer.dilation),
            *(False, (0,) * len(layer.stride), layer.groups, (False, True, False)),
        )[1]
        return found

    _add(sums, layer.weight, weight)
    _add(sums, layer.bias, lambda: delta.sum((0, *range(2, delta.dim()))))


def _norm(sums: Sums, layer: _Norm, x: Tensor, delta: Tensor) -> None:
    if isinstance(layer, nn.LayerNorm):
        dims = tuple(range(delta.dim() - len(layer.normalized_shape)))
    else:
        dims = (0, *range(2, delta.dim()))
    _add(sums, layer.weight, lambda: (delta * _normalised(layer, x)).sum(dims))
    _add(sums, layer.bias, lambda: delta.sum(dims))


def _normalised(layer: _Norm, x: Tensor) -> Tensor:
    """x̂: what the layer scales and shifts."""
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(x, layer.num_groups, eps=layer.eps)
    return functional.batch_norm(
        x, layer.running_mean, layer.running_var, eps=layer.eps
    )


def _add(sums: Sums, parameter: Tensor | None, estimate: Callable[[], Tensor]) -> None:
    if parameter is None or not parameter.requires_grad:
        return
    held = sums.get(id(parameter))
    if held is None:
        sums[id(parameter)] = estimate()
    else:
        held += estimate()
