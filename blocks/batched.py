"""Batched forms: the logits of many parameter vectors on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from blocks.activity_links import hooked, is_plain
from blocks.layout import Layout

Form = Literal["auto", "loop", "vmap", "bmm", "pairs"]

_WIDEST = 65_536  # entries of a first weight up to which "bmm" beats the loop
_PASSES_AT_ONCE = 16_384  # of "vmap": vectors × samples, alive at once
_VECTORS_AT_ONCE = 16  # of "bmm" on a CPU: more leave the cache, fewer gain less

_ELEMENTWISE = (
    nn.ReLU,
    nn.Tanh,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.ELU,
    nn.LeakyReLU,
    nn.Softplus,
    nn.Identity,
    nn.Dropout,  # the identity in evaluation mode, the only mode of these forms
)


def best_form(module: nn.Module, device_type: str, n_probes: int) -> Form:
    """Return the fastest form for a module: a fixed table, never a timing.

    A run's numbers depend on the form, so the choice must not depend on a machine's
    mood. On a CPU: "loop" for one vector and for whatever is no perceptron; "bmm" for
    perceptrons whose first weight has at most 65,536 entries, "loop" for wider ones,
    whose weights would be copied at a loss. On a GPU, where nothing was measured, "bmm"
    for perceptrons and "vmap" for the rest: a loop would launch kernels one by one.

    Notes
    -----
    Measured on one thread of a two-core AMD EPYC, torch 2.13, passes of n samples a
    second, K = 16 to 256:

    ====================  =====  ============  =============  =============
    model                 n      loop          vmap           bmm
    ====================  =====  ============  =============  =============
    mlp 784-32-10         64     10,600–11,500 9,900–17,200   17,000–17,700
    mlp 784-32-10         256    4,000–4,500   3,800–5,400    5,100–6,200
    mlp 784-32-10         1,000  1,130–1,270   1,260–1,290    1,500–1,630
    mlp 784-64-32-10      256    2,370–2,460   2,450–2,900    2,560–2,710
    mlp 784-256-10        256    780–820       750–820        720–760
    lenet 28 × 28         64     300–390       150–260        –
    cifar_cnn 32 × 32     64     44–45         16–17          –
    resnet8 32 × 32       64     46–49         8–10           –
    ====================  =====  ============  =============  =============
    """
    if n_probes == 1:
        return "loop"
    if not is_perceptron(module):
        return "loop" if device_type == "cpu" else "vmap"
    first = next(part for part in leaves(module) if isinstance(part, nn.Linear))
    if device_type == "cpu" and first.weight.numel() > _WIDEST:
        return "loop"
    return "bmm"


def best_probe_form(module: nn.Module, device_type: str, n_probes: int) -> Form:
    """Return the fastest form for joint antithetic probes: a fixed table.

    "pairs" (``blocks.pairs``) for perceptrons, whatever their widths and the rank of
    the probes; ``best_form`` for the rest, and for one point.

    Notes
    -----
    Loss values a second of one thread's own time (two-core AMD EPYC with other work,
    torch 2.13), ± 1 probes of one block drawn and scored, K = 128 (32 for the widest):

    ==================  =====  ======  ======  =============  ==============
    model               n      loop    bmm     pairs, dense   pairs, rank 1
    ==================  =====  ======  ======  =============  ==============
    mlp 784-32-10       64     6,100   6,800   17,000         145,300
    mlp 784-32-10       256    4,200   4,600   9,500          46,100
    mlp 784-32-10       1,000  1,370   1,400   2,880          13,300
    mlp 784-64-32-10    256    2,060   2,060   4,720          21,200
    mlp 784-256-10      256    470     450     1,070          8,200
    mlp 784-256-256-10  256    330     310     640            1,870
    mlp 784-1024-1024…  64     53      56      149            490
    ==================  =====  ======  ======  =============  ==============
    """
    if n_probes > 1 and is_perceptron(module):
        return "pairs"
    return best_form(module, device_type, n_probes)


def samples_at_once(module: nn.Module, device_type: str) -> int:
    """Return how many samples one pass takes in evaluation mode, a fixed number.

    Convolutions on a CPU run 1.7 to 3.4 times faster on 100 samples than on 1,000,
    whose maps leave the cache (one thread, samples a second: lenet 23,600 against
    13,500, cifar_cnn 2,970 against 1,450, resnet8 2,920 against 870). Otherwise
    the number only bounds memory.
    """
    if device_type == "cpu" and not is_perceptron(module):
        return 100
    return 10_000


def check_form(form: str, module: nn.Module) -> None:
    """Check that a form is known and suits the module.

    Raises
    ------
    ValueError — if it is unknown, or one for perceptrons and the module is none.
    """
    if form not in get_args(Form):
        allowed = ", ".join(f'"{name}"' for name in get_args(Form))
        raise ValueError(f"`form` must be one of {allowed}; got {form!r}. Choose one.")
    if form in ("bmm", "pairs") and not is_perceptron(module):
        raise ValueError(
            f'`form` = "{form}" must be given a sequence of one Flatten, then Linear '
            f"and elementwise layers; got {type(module).__name__}. "
            'Use "auto" or "loop".'
        )


def is_perceptron(module: nn.Module) -> bool:
    """Return whether a module is Flatten, then Linear and elementwise layers."""
    parts = list(leaves(module))
    return (
        is_plain(module)
        and len(parts) >= 2
        and not any(hooked(part) for part in parts)
        and isinstance(parts[0], nn.Flatten)
        and (parts[0].start_dim, parts[0].end_dim) == (1, -1)
        and any(type(part) is nn.Linear for part in parts)
        and all(type(part) in (nn.Linear, *_ELEMENTWISE) for part in parts[1:])
        and all(parameter.requires_grad for parameter in module.parameters())
    )


def vmap_logits(module: nn.Module, layout: Layout, thetas: Tensor, x: Tensor) -> Tensor:
    """(K, n, n_classes) logits by ``torch.func.vmap`` over parameter vectors.

    Activations of all K exist at once: samples come in parts.
    """

    def one(theta: Tensor, part: Tensor) -> Tensor:
        named = {s.name: theta[s.start : s.stop].view(s.shape) for s in layout.segments}
        logits: Tensor = functional_call(module, named, (part,))
        return logits

    parts = x.split(max(_PASSES_AT_ONCE // len(thetas), 1))
    many = [vmap(one, in_dims=(0, None))(thetas, part) for part in parts]
    return torch.cat(many, 1).contiguous()


def bmm_logits(module: nn.Module, layout: Layout, thetas: Tensor, x: Tensor) -> Tensor:
    """(K, n, n_classes) logits of a perceptron by explicit batched products.

    Activations are kept as (K, units, n). The first layer's inputs are the same for all
    K, so that its K products are one: (K·units, inputs) × (inputs, n).
    """
    # K vectors, n samples, o outputs, i inputs of a layer
    at_once = _VECTORS_AT_ONCE if thetas.device.type == "cpu" else len(thetas)
    if len(thetas) > at_once:
        parts = [bmm_logits(module, layout, t, x) for t in thetas.split(at_once)]
        return torch.cat(parts)
    places = {segment.name: segment for segment in layout.segments}
    names = {id(p): name for name, p in module.named_parameters()}

    def values(parameter: Tensor) -> Tensor:
        place = places[names[id(parameter)]]
        return thetas[:, place.start : place.stop].view(-1, *place.shape)

    shared = x.flatten(1).T  # (i, n)
    hidden: Tensor | None = None  # (K, o, n)
    for part in leaves(module):
        if not isinstance(part, nn.Linear):
            if hidden is not None:
                hidden = part(hidden)
            elif not isinstance(part, nn.Flatten):
                shared = elementwise(part, shared)
            continue
        weight = values(part.weight)  # (K, o, i)
        if hidden is None:
            stacked = weight.reshape(-1, weight.shape[2])  # a copy: (K·o, i)
            hidden = (stacked @ shared).view(len(thetas), -1, shared.shape[1])
        else:
            hidden = torch.bmm(weight, hidden)
        if part.bias is not None:
            hidden += values(part.bias).unsqueeze(2)
    assert hidden is not None, "a perceptron has a linear layer"
    return hidden.transpose(1, 2).contiguous()


def elementwise(part: nn.Module, x: Tensor) -> Tensor:
    """Return ``part(x)`` of a caller's ``x``, which is not written to."""
    answer: Tensor = part(x.clone() if getattr(part, "inplace", False) else x)
    return answer


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Modules of nested plain sequences in the order in which they are applied."""
    if is_plain(module):
        for part in module._modules.values():
            if part is not None:
                yield from leaves(part)
    else:
        yield module
