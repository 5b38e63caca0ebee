"""A module held as views of two flat vectors: parameters and float buffers."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blocks.activity_links import apply, hooked
from blocks.batched import samples_at_once
from blocks.flat import aligned, as_views, check_flat
from blocks.layout import Layout
from blocks.losses import LossFunction, UserLoss
from blocks.usercode import MEND, RUNS, UserCodeError, calling, check_logits

_OPEN = contextlib.nullcontext()
_DIFFERENTIABLE = (
    "be differentiable by torch for this algorithm",
    "Use torch's operations, not in place, or an algorithm without gradients.",
)
_NO_COPY = "Keep locks, files and tensors with a graph out of it."


class HeldModule:
    """A copy of a module whose values are set by writing two flat vectors.

    ``module`` holds whatever was set last: compute with it only inside ``holding``,
    which sets both vectors and keeps other threads out meanwhile.

    A network of the user's is handed copies and answers copies: it may write to its
    inputs, keep them, or answer the same memory again, and nothing of ours changes.

    Parameters
    ----------
    module : any module; its values at this moment are the initial ones.
    device : where the copy lives.
    user : "package.module:factory" of a network that is the user's own; "" for ours.
    """

    def __init__(
        self, module: nn.Module, device: torch.device | str = "cpu", user: str = ""
    ) -> None:
        self.device: torch.device = torch.device(device)
        self.user = user
        self.layout = Layout.from_module(module)
        with self.door("be copied by `copy.deepcopy`", _NO_COPY):
            self.module = copy.deepcopy(module).float().to(self.device).eval()
        named = dict(self.module.named_parameters())
        self.params = [named[s.name] for s in self.layout.segments]
        self.theta = as_views(
            self.params, self.layout.segments, self.layout.n_params, self.device
        )
        floats = dict(self.module.named_buffers())
        self.buffers = as_views(
            [floats[s.name] for s in self.layout.buffer_segments],
            self.layout.buffer_segments,
            self.layout.n_buffers,
            self.device,
        )
        self._counts = [b for b in floats.values() if not b.is_floating_point()]
        self._first_counts = [count.clone() for count in self._counts]
        self.first_theta = self.theta.clone()
        self.first_buffers = self.buffers.clone()
        self._at_once = samples_at_once(self.module, self.device.type)
        # What θ was copied from last, and torch's count of the writes to it by then.
        self._set: tuple[Tensor, int] | None = None
        self._lock = threading.RLock()

    def copy(self, params: Tensor, buffers: Tensor | None = None) -> nn.Module:
        """Return a module of its own that holds these values, in evaluation mode."""
        with (
            self.holding(params, buffers),
            self.door("be copied by `copy.deepcopy`", _NO_COPY),
        ):
            module = copy.deepcopy(self.module)
        floats = dict(module.named_buffers())
        for segment in self.layout.buffer_segments:
            # A copied view would still share one storage with its neighbours.
            floats[segment.name].data = floats[segment.name].data.clone()
        return module.eval()

    def door(
        self, rule: str = RUNS, advice: str = MEND
    ) -> contextlib.AbstractContextManager[None]:
        """What the network is called in: errors of a user's become one sentence."""
        if not self.user:
            return _OPEN
        return calling("model", self.user, rule, advice)

    def differentiating(
        self, loss_function: LossFunction
    ) -> contextlib.AbstractContextManager[None]:
        """What network and loss are differentiated in."""
        if self.user:
            return calling("model", self.user, *_DIFFERENTIABLE)
        if isinstance(loss_function, UserLoss):
            return calling("loss", loss_function.name, *_DIFFERENTIABLE)
        return _OPEN

    def lent(self, x: Tensor) -> Tensor:
        """Return inputs as the network gets them: aligned, a copy if it is a user's."""
        x = aligned(x)
        return x.clone() if self.user else x

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits of the values held, some samples at a time, in evaluation mode."""
        if self.user:
            parts = self.lent(x).split(self._at_once)
            return torch.cat([self._answer(part, _forward) for part in parts])
        if len(x) <= self._at_once:
            return _forward(self.module, x)
        return torch.cat([_forward(self.module, p) for p in x.split(self._at_once)])

    def logits(self, x: Tensor, values: dict[str, Tensor] | None = None) -> Tensor:
        """Logits in the present mode, with their graph.

        ``values`` : of parameters and buffers, by name; ``None``: those held.
        """

        def call(module: nn.Module, rows: Tensor) -> Tensor:
            answer: Tensor = (
                module(rows)
                if values is None
                else functional_call(module, values, (rows,))
            )
            return answer

        if not self.user:
            return call(self.module, aligned(x))
        return self._answer(self.lent(x), call)

    def called(self, x: Tensor) -> None:
        """Call the network for what it does to its buffers."""
        with self.door():
            self.module(self.lent(x))

    def _answer(self, x: Tensor, call: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """A user's logits in memory of their own."""
        n = len(x)
        with self.door():
            answer = call(self.module, x)
        logits = check_logits(self.user, answer, n)
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise UserCodeError(
                f"`model` = {self.user!r} must be differentiable by torch for this "
                "algorithm; got logits without a gradient. Compute them from the "
                "parameters, without `.detach()` or `no_grad`."
            )
        return logits.clone()

    @contextlib.contextmanager
    def holding(self, params: Tensor, buffers: Tensor | None) -> Iterator[None]:
        """Hold the module, with these values in it."""
        check_flat("params", params, self.layout.n_params)
        if buffers is None:
            buffers = self.first_buffers
        check_flat("buffers", buffers, self.layout.n_buffers)
        with self._lock:
            if (
                self.user  # whose network may have written to θ itself
                or self._set is None
                or self._set[0] is not params
                or (self._set[1] != params._version)
            ):
                self.theta.copy_(params)
                self._set = params, params._version
            if self.layout.n_buffers:
                self.buffers.copy_(buffers)
            yield

    @contextlib.contextmanager
    def training(self, seed: int) -> Iterator[None]:
        """Training mode with seeded randomness; integer buffers are put back."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            if cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            with self.door():
                self.module.train()
            try:
                yield
            finally:
                with self.door():
                    self.module.eval()
                for count, first in zip(self._counts, self._first_counts, strict=True):
                    count.copy_(first)


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``module(x)``, the same numbers; sequences link by link, as is fastest."""
    if type(module) is not nn.Sequential or hooked(module):
        return apply(module, x, own=False)
    for part in module:
        x = _forward(part, x)
    return x
