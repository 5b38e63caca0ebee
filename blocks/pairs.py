"""The form "pairs": a perceptron's logits at all joint antithetic probes at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blocks.batched import elementwise, leaves
from blocks.flat import aligned
from blocks.joint_probes import JointProbes
from blocks.layout import Layout
from blocks.pair_noise import WeightNoise, place_noise

_CACHED = 1 << 16  # activations of a layer and sign at a time: half of them stay in L2
_CACHED_CUDA = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A dense layer at all probes: W ± (L R + D), b ± β."""

    weight: Tensor  # (o, i), W
    noise: WeightNoise
    columns: Tensor  # (n_pairs, o, q + 2), [L, β, b]; (n_pairs, o, q) without bias

    def rows(self, chunk: slice, products: Tensor) -> Tensor:
        """(c, q + 2, 2n) what ``columns`` multiplies, from R·inputs (c, q, 2n)."""
        c, q, width = products.shape
        n_more = self.columns.shape[2] - q
        if n_more == 0:
            products[:, :, width // 2 :].neg_()
            return products
        rows = products.new_ones((c, q + n_more, width))
        rows[:, :q] = products
        rows[:, : q + 1, width // 2 :].neg_()
        return rows


class Pairs:
    """The probes of one score, laid out by layer; made once, used for every batch.

    Activations are (pairs, units, 2n): of every unit the n samples at +, then at −. The
    first layer's product with the centre, W x, is shared by all probes, and that of the
    perturbation by the two probes of a pair. In later layers all probes share one W: a
    low-rank perturbation adds L (R h), a dense one takes W ± D instead of W. Biases and
    their perturbations ride along as two more columns of L.

    Parameters
    ----------
    module : a perceptron (``batched.is_perceptron``) in evaluation mode; only its
        structure is used.
    layout : places of its parameters in θ.
    probes : K = 2·n_pairs joint probes.
    dtype : in which products and activations are kept; parameters and perturbations are
        drawn and joined in float32 before.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        probes: JointProbes,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        self.n_pairs = probes.n_pairs
        self._parts = tuple(leaves(module))
        centre, noise = probes.centre(), place_noise(probes)
        names = {id(p): name for name, p in module.named_parameters()}
        places = {segment.name: segment for segment in layout.segments}
        self._layers: dict[int, _Layer] = {}
        for index, part in enumerate(self._parts):
            if isinstance(part, nn.Linear):
                owners = (
                    [part.weight] if part.bias is None else [part.weight, part.bias]
                )
                segments = [places[names[id(owner)]] for owner in owners]
                values = [centre[s.start : s.stop].view(s.shape) for s in segments]
                weight_noise = noise.of_weight(segments[0])
                columns = [weight_noise.left]
                if part.bias is not None:
                    shift = noise.of_entries(segments[1]).unsqueeze(2)
                    columns += [shift, values[1][:, None].expand_as(shift)]
                self._layers[index] = _Layer(
                    aligned(values[0]).to(dtype),
                    weight_noise.to(dtype),
                    torch.cat(columns, dim=2).to(dtype),
                )

    def logits(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (pairs, (c, n_classes, 2n) float32 logits) on inputs x (n, C, H, W).

        How many pairs come at a time follows from the shapes alone.
        """
        shared = x.flatten(1)
        first = 0
        for part in self._parts:
            if isinstance(part, nn.Linear):
                break
            flat = isinstance(part, nn.Flatten)
            shared = shared if flat else elementwise(part, shared)
            first += 1
        shared = shared.T.to(self._dtype)  # (i, n)
        layer = self._layers[first]
        base = layer.weight @ shared  # (o, n)
        at_once = self._at_once(len(x), x.device.type)
        for start in range(0, self.n_pairs, at_once):
            chunk = slice(start, min(start + at_once, self.n_pairs))
            hidden = _first(layer, chunk, base, shared)
            for index in range(first + 1, len(self._parts)):
                part = self._parts[index]
                if isinstance(part, nn.Linear):
                    hidden = _later(self._layers[index], chunk, hidden)
                elif isinstance(part, nn.ReLU):
                    hidden.relu_()
                else:
                    hidden = part(hidden)
            yield chunk, hidden.float()

    def _at_once(self, n: int, device_type: str) -> int:
        widest = max(layer.weight.shape[0] for layer in self._layers.values())
        held = _CACHED if device_type == "cpu" else _CACHED_CUDA
        return max(held // (widest * n), 1)


def _first(layer: _Layer, chunk: slice, base: Tensor, shared: Tensor) -> Tensor:
    """(c, o, 2n) the first layer's outputs; ``shared`` (i, n), ``base`` = W·shared."""
    o, n = base.shape
    c = chunk.stop - chunk.start
    noise = layer.noise
    if noise.dense is None:
        twice = base.unsqueeze(1).expand(o, 2, n).reshape(1, o, 2 * n)
        hidden = twice.expand(c, o, 2 * n)
    else:
        product = (noise.dense[chunk].reshape(c * o, len(shared)) @ shared).view(
            c, o, n
        )
        both = base.new_empty((c, o, 2, n))
        torch.add(base, product, alpha=noise.std, out=both[:, :, 0])
        torch.sub(base, product, alpha=noise.std, out=both[:, :, 1])
        hidden = both.view(c, o, 2 * n)
    if not layer.columns.shape[2]:
        return hidden
    right = noise.right[chunk]
    q = right.shape[1]
    products = (right.reshape(c * q, len(shared)) @ shared).view(c, q, 1, n)
    rows = layer.rows(chunk, products.expand(c, q, 2, n).reshape(c, q, 2 * n))
    return torch.baddbmm(hidden, layer.columns[chunk], rows)


def _later(layer: _Layer, chunk: slice, hidden: Tensor) -> Tensor:
    """(c, o, 2n) a later layer's outputs from its inputs (c, i, 2n)."""
    c, _, width = hidden.shape
    noise = layer.noise
    if noise.dense is None:
        out = torch.bmm(layer.weight.expand(c, *layer.weight.shape), hidden)
    else:
        dense, n = noise.dense[chunk], width // 2
        plus = torch.add(layer.weight, dense, alpha=noise.std)
        minus = torch.sub(layer.weight, dense, alpha=noise.std)
        out = torch.cat(
            [torch.bmm(plus, hidden[:, :, :n]), torch.bmm(minus, hidden[:, :, n:])], 2
        )
    if not layer.columns.shape[2]:
        return out
    rows = layer.rows(chunk, torch.bmm(noise.right[chunk], hidden))
    return out.baddbmm_(layer.columns[chunk], rows)
