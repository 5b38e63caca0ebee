"""A module held as views of two flat vectors: parameters and float buffers."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from blocks.activity_links import apply
from blocks.batched import samples_at_once
from blocks.flat import as_views, check_flat
from blocks.layout import Layout


class HeldModule:
    """A copy of a module whose values are set by writing two flat vectors.

    ``module`` holds whatever was set last: compute with it only inside ``holding``,
    which sets both vectors and keeps other threads out meanwhile.

    Parameters
    ----------
    module : any module; its values at this moment are the initial ones.
    device : where the copy lives.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.device: torch.device = torch.device(device)
        self.layout = Layout.from_module(module)
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
        with self.holding(params, buffers):
            module = copy.deepcopy(self.module)
        floats = dict(module.named_buffers())
        for segment in self.layout.buffer_segments:
            # A copied view would still share one storage with its neighbours.
            floats[segment.name].data = floats[segment.name].data.clone()
        return module.eval()

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits of the values held, some samples at a time, in evaluation mode."""
        if len(x) <= self._at_once:
            return _forward(self.module, x)
        return torch.cat([_forward(self.module, p) for p in x.split(self._at_once)])

    @contextlib.contextmanager
    def holding(self, params: Tensor, buffers: Tensor | None) -> Iterator[None]:
        """Hold the module, with these values in it."""
        check_flat("params", params, self.layout.n_params)
        if buffers is None:
            buffers = self.first_buffers
        check_flat("buffers", buffers, self.layout.n_buffers)
        with self._lock:
            if (
                self._set is None
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
            self.module.train()
            try:
                yield
            finally:
                self.module.eval()
                for count, first in zip(self._counts, self._first_counts, strict=True):
                    count.copy_(first)


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``module(x)``, the same numbers; sequences link by link, as is fastest."""
    if type(module) is not nn.Sequential or module._forward_hooks:
        return apply(module, x, own=False)
    for part in module:
        x = _forward(part, x)
    return x
