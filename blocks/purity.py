"""Whether a user's network and loss are functions of what they are given, and no more.

A run's numbers must depend neither on how often code was called, nor on chance, nor on
which samples share a batch: else ``batch_size``, ``eval_every`` or a resumed run would
change them, and equal ids would have unequal results.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blocks.forward import FlatModel
from blocks.linearised import linearise, loss_curvature
from blocks.losses import LossFunction, UserLoss
from blocks.usercode import UserCodeError, calling

SAMPLES = 12  # that a trial takes: four, and two times four to stand beside them
_CALLS = 3  # further calls with equal arguments
_CLOSE = 1e-4  # relative: kernels round otherwise for other shapes and places

Fingerprint = dict[str, str]  # of every parameter and buffer, by name


def fingerprint(module: nn.Module, without: Collection[str] = ()) -> Fingerprint:
    """Return digests of what a network starts with: parameters, frozen ones, buffers.

    Parameters
    ----------
    module : as its factory returned it.
    without : names of those that a run takes from elsewhere.
    """
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {k: _digest(v) for k, v in named.items() if k not in without}


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    whole = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    whole.update(values.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def check_start(name: str, start: Fingerprint, again: Fingerprint) -> None:
    """Check that two builds from one seed start with the same values.

    Raises
    ------
    UserCodeError — if they do not; a tensor that differs is named.
    """
    differ = [k for k in {**start, **again} if start.get(k) != again.get(k)]
    if differ:
        raise UserCodeError(
            f"`model` must build the same network from the same `seed`; got {name!r}, "
            f"whose `{differ[0]}` had other values when it was built again. Draw from "
            "the global generators of torch, numpy or Python, which the run seeds, not "
            "from an unseeded one of your own, a clock or a counter."
        )


@dataclass(frozen=True, slots=True)
class Code:
    """A setting, the name that it holds, and what it is asked: rows → answers."""

    setting: str
    name: str
    ask: Callable[[Tensor], Tensor]

    def error(self, rule: str, got: str, advice: str) -> UserCodeError:
        """The sentence that is to be raised."""
        return UserCodeError(
            f"`{self.setting}` must {rule}; got {self.name!r}, {got}. {advice}"
        )


def check_function(code: Code, *, finite: bool = True) -> None:
    """Check that answers depend on their own samples alone, at every call.

    Parameters
    ----------
    code : asked for rows (n,) int64 among ``SAMPLES``; answers (n, …).
    finite : bool — whether answers must be finite numbers.

    Raises
    ------
    UserCodeError — if an answer is not finite, is another at another call, draws from
        a global random generator, or depends on the batch that a sample is in.
    """
    own, beside, instead = torch.arange(SAMPLES).chunk(3)
    rows = torch.cat([own, beside])
    before = _generators()
    first = code.ask(rows)
    drawn = [k for k, state in _generators().items() if state != before[k]]
    model = code.setting == "model"
    if drawn:
        raise code.error(
            "use no randomness"
            + (" where it is scored and evaluated" if model else ""),
            f"which drew from {drawn[0]} generator",
            "Take chance out of it"
            + (", or let it draw in training mode only." if model else "."),
        )
    bad = ~torch.isfinite(first.reshape(len(rows), -1)).all(1)
    if finite and bad.any():
        kind = "NaN" if first[bad].isnan().any() else "infinity"
        raise code.error(
            "answer finite numbers at the initial parameters",
            f"which gave {kind} for {int(bad.sum())} of {len(rows)} samples",
            "Guard logarithms, roots and quotients.",
        )
    for _ in range(_CALLS):
        _same_again(code, rows, first)
    mixed = code.ask(torch.cat([own, instead]))
    if not _equal(mixed[: len(own)], first[: len(own)]):
        _same_again(code, rows, first)  # else it is the call that counts
        raise code.error(
            "answer every sample by itself",
            "whose answer to a sample changed with the other samples of its batch",
            "Use no means, norms or ranks over the batch where it is evaluated.",
        )
    order = torch.arange(len(rows)).flip(0)
    for cut in ([order], list(torch.arange(len(rows)).split(3))):
        found = torch.cat([code.ask(rows[part]) for part in cut])
        _close(code, rows, found, first, torch.cat(cut))
    _same_again(code, rows, first)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _same_again(code: Code, rows: Tensor, first: Tensor) -> None:
    if not _equal(code.ask(rows), first):
        raise code.error(
            "answer the same whenever it is asked the same",
            "which answered otherwise at another call",
            "Keep nothing between calls, and use neither clocks nor random generators.",
        )


def _close(
    code: Code, rows: Tensor, found: Tensor, first: Tensor, order: Tensor
) -> None:
    expected = first[order]
    limit = _CLOSE * max(float(expected.nan_to_num().abs().max()), 1e-2)
    if not torch.allclose(found, expected, rtol=0.0, atol=limit, equal_nan=True):
        _same_again(code, rows, first)
        raise code.error(
            "answer every sample by itself",
            "whose answer to a sample changed with the size or the order of its batch",
            "Divide by no batch size, and take samples from the first dimension.",
        )


def check_learns(code: Code, model: FlatModel, ask: Callable[[Tensor], Tensor]) -> None:
    """Check that a network's logits depend on its parameters.

    Parameters
    ----------
    ask : (P,) parameters → logits of fixed samples.

    Raises
    ------
    UserCodeError — if other parameters give the same logits.
    """
    theta = model.initial_params()
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(len(theta), generator=generator).to(theta.device)
    if torch.equal(ask(theta), ask(theta + 0.1 * shift)):
        raise code.error(
            "compute its logits from its own parameters",
            "whose logits stayed the same with other parameters",
            "Use the layers of `self`, which are copied, not those of a closure.",
        )


def check_gradient(
    code: Code,
    model: FlatModel,
    loss_function: LossFunction,
    params: Tensor,
    x: Tensor,
    targets: Tensor,
    buffers: Tensor | None,
) -> None:
    """Check that a training pass answers the same twice, and finite numbers.

    Raises
    ------
    UserCodeError — if it does not, or draws from numpy's or Python's generator.
    """
    before = _generators()
    found = [
        model.gradient(params, x, targets, loss_function, buffers, seed=1)
        for _ in range(2)
    ]
    drawn = [k for k, state in _generators().items() if state != before[k]]
    if drawn:
        raise code.error(
            "draw from torch's generator only when it is trained",
            f"which drew from {drawn[0]} generator",
            "The run seeds torch's for every step.",
        )
    (loss, gradient, after), (again, *others) = found
    if not np.isfinite(loss) or not bool(torch.isfinite(gradient).all()):
        raise code.error(
            "have a finite loss and gradient at the initial parameters",
            "which gave NaN or infinity",
            "Guard logarithms, roots and quotients.",
        )
    pairs = zip((gradient, after), others, strict=True)
    same = all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in pairs
    )
    if loss != again or not same:
        raise code.error(
            "give the same gradient whenever it is asked the same",
            "which gave another one at the second call",
            "Keep what training changes in float buffers, and draw from torch only.",
        )


def check_curvature(
    code: Code,
    model: FlatModel,
    loss_function: LossFunction,
    params: Tensor,
    x: Tensor,
    targets: Tensor,
    buffers: Tensor | None,
) -> None:
    """Check that network and loss are differentiable twice.

    Raises
    ------
    UserCodeError — if they are not.
    """
    advice = "Use torch's operations, or another algorithm."
    with calling(code.setting, code.name, "be differentiable twice by torch", advice):
        linear = linearise(model, params, x, targets, loss_function, buffers, seed=1)
        linear.vjp(linear.jvp(torch.ones_like(params)))
        loss_curvature(linear.losses, linear.logits)(torch.ones_like(linear.logits))


def user_loss(loss_function: LossFunction) -> str:
    """Return the name of a loss that is the user's own; "" for ours."""
    return loss_function.name if isinstance(loss_function, UserLoss) else ""


def _generators() -> dict[str, bytes]:
    """Return the states of the global generators, by whose they are."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return {
        "torch's": torch.get_rng_state().numpy().tobytes(),
        "numpy's": np.append(state[1], state[2]).tobytes(),
        "Python's": repr(random.getstate()).encode(),
    }
