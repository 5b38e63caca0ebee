"""Loss sums of all joint probes of a version, batch by batch, in a form of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from blocks.batched import Form, best_probe_form, check_form
from blocks.flat import aligned
from blocks.forward import FlatModel
from blocks.joint_probes import JointProbes
from blocks.losses import LossFunction, cross_entropy
from blocks.pairs import Pairs
from blocks.precision import products_in

PROBES_AT_ONCE = 64  # parameter vectors written out at a time; even

# (inputs (n, C, H, W), targets (n,)) → (k,) float64 sums of float32 per-sample losses
BatchLosses = Callable[[Tensor, Tensor], Tensor]


def probe_losses(
    model: FlatModel,
    probes: JointProbes,
    loss_function: LossFunction,
    form: Form = "auto",
    buffers: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, BatchLosses]]:
    """Yield (first probe, function of a batch): losses of some probes at a time.

    The functions are to be called while they are the newest; together their answers are
    the K losses in the order of the probes. No autograd graph is built.

    Parameters
    ----------
    model : whose parameters are probed.
    probes : K joint antithetic probes.
    loss_function : (logits, targets) → (n,) float32 losses.
    form : "pairs" (perceptrons: nothing is written out), a form of
        ``FlatModel.logits_many``, or "auto" (``batched.best_probe_form``).
    buffers : (B,) float32, shared by all probes; ``None``: the initial ones.
    dtype : in which products are taken; logits and losses are float32.

    Raises
    ------
    ValueError — if the form is unknown or does not suit the module.
    """
    n_probes = 2 * probes.n_pairs
    if form == "auto":
        form = best_probe_form(model.module, model.device.type, n_probes)
    check_form(form, model.module)
    if form == "pairs":
        pairs = Pairs(model.module, model.layout, probes, dtype)
        yield 0, lambda x, targets: _pair_sums(pairs, x, targets, loss_function)
        return
    half = PROBES_AT_ONCE // 2
    for start in range(0, probes.n_pairs, half):
        points = probes.points(start, start + half)

        def sums(x: Tensor, targets: Tensor, points: Tensor = points) -> Tensor:
            with products_in(dtype, x.device.type):
                many = model.logits_many(points, x, form, buffers).float()
            with torch.no_grad():
                return torch.stack(
                    [loss_function(one, targets).double().sum() for one in many]
                )

        yield 2 * start, sums


def _pair_sums(
    pairs: Pairs, x: Tensor, targets: Tensor, loss_function: LossFunction
) -> Tensor:
    """(2·n_pairs,) float64 loss sums on one batch."""
    found = []
    with torch.no_grad():
        twice = targets.repeat(2)
        for _, logits in pairs.logits(aligned(x)):
            if loss_function is cross_entropy:
                wanted = twice.expand(len(logits), 1, -1)
                losses = torch.log_softmax(logits, 1).gather(1, wanted).neg_()
            else:
                rows = [one.T.contiguous().chunk(2) for one in logits]
                halves = [loss_function(z, targets) for pair in rows for z in pair]
                losses = torch.stack(halves)
            by_probe = losses.reshape(-1, len(targets))
            found.append(by_probe.sum(1, dtype=torch.float64))
    return torch.cat(found)
