"""What a node may ask of model and data: guarded by its declaration, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from blocks.algorithm import Gradient, Information, InformationError
from blocks.feedback import Feedback, direct_feedback
from blocks.forward import FlatModel
from blocks.linearised import Linearised, linearise
from blocks.losses import LossFunction

Samples = tuple[Tensor, Tensor]
Minibatch = Callable[[int], Samples]
Pooled = Callable[[int, tuple[int, int]], Samples]
Common = Callable[[], Iterable[Samples]]
Credit = Callable[[], Tensor]


@dataclass(slots=True)
class Counters:
    """What one node, or a whole run, has used so far."""

    n_loss_evals: int = 0
    n_gradient_evals: int = 0
    n_samples: int = 0
    bytes_moved: int = 0

    def add(self, other: Counters) -> None:
        """Add ``other`` in place."""
        self.n_loss_evals += other.n_loss_evals
        self.n_gradient_evals += other.n_gradient_evals
        self.n_samples += other.n_samples
        self.bytes_moved += other.bytes_moved


class GuardedOracle:
    """Answers one node at one step, only within ``allowed``; every answer is counted.

    Model, data and loss are private: what is not a question below cannot be asked.

    Parameters
    ----------
    allowed : Information — the algorithm's declaration.
    model : FlatModel — the network on this process's device.
    loss_function : per-sample loss, (logits, targets) → (n,).
    minibatch : step → (inputs (b, C, H, W), targets (b,)) of the node's own shard.
    step : int — the node's own step, which selects the minibatch.
    counters : where answers are counted; new ones by default.
    pooled : (step, (start, stop)) → those samples of the minibatch that all nodes
        share; None where there is none.
    common : → batches of the fixed subset that all nodes share; None as above.
    credit : → (d,) float32, what the score's noise tells the node's own layers; None
        where the score was not perturbed so.

    Raises
    ------
    InformationError — on a question that ``allowed`` does not cover.
    """

    __slots__ = (
        "_allowed",
        "_common",
        "_credit",
        "_loss",
        "_minibatch",
        "_model",
        "_pooled",
        "_step",
        "counters",
    )

    def __init__(
        self,
        allowed: Information,
        model: FlatModel,
        loss_function: LossFunction,
        minibatch: Minibatch,
        step: int,
        counters: Counters | None = None,
        pooled: Pooled | None = None,
        common: Common | None = None,
        credit: Credit | None = None,
    ) -> None:
        self._allowed = allowed
        self._model = model
        self._loss = loss_function
        self._minibatch = minibatch
        self._step = step
        self._pooled = pooled
        self._common = common
        self._credit = credit
        self.counters = Counters() if counters is None else counters

    @property
    def device(self) -> torch.device:
        """Where parameters, windows and data live."""
        return self._model.device

    def _require(self, flag: Information) -> None:
        if not self._allowed & flag:
            raise InformationError(
                f"`oracle` must not be asked for {flag.name}; the algorithm declares "
                f"{self._allowed}. Add the flag to its `information`."
            )

    def loss(self, params: Tensor) -> float:
        """Mean loss of ``params`` (P,) on the node's own minibatch of this step."""
        self._require(Information.LOSS_ORACLE)
        inputs, targets = self._minibatch(self._step)
        with torch.no_grad():
            losses = self._loss(self._model.forward(params, inputs), targets)
        self.counters.n_loss_evals += 1
        self.counters.n_samples += len(targets)
        return float(losses.double().mean())

    def common_loss(self, params: Tensor, buffers: Tensor | None = None) -> float:
        """Mean loss of ``params`` (P,) on the fixed subset that all nodes share."""
        self._require(Information.LOSS_ORACLE)
        if self._common is None:
            raise ValueError(
                "`oracle` must have a subset that all nodes share; got none here. Use "
                "`loss` instead."
            )
        total, n = 0.0, 0
        with torch.no_grad():
            for inputs, targets in self._common():
                losses = self._loss(
                    self._model.forward(params, inputs, buffers), targets
                )
                total += float(losses.double().sum())
                n += len(targets)
        self.counters.n_loss_evals += 1
        self.counters.n_samples += n
        return total / n

    def gradient(
        self,
        params: Tensor,
        buffers: Tensor | None,
        minibatch: int | None = None,
        part: tuple[int, int] | None = None,
    ) -> Gradient:
        """Gradient of the mean loss on one minibatch, in training mode.

        Parameters
        ----------
        params, buffers : (P,), (B,) or None.
        minibatch : its number, from 0; None: that of this step.
        part : samples [start, stop) of the minibatch that all nodes share, instead of
            the node's own.
        """
        self._require(Information.GRADIENT_ORACLE)
        inputs, targets, k = self._samples(minibatch, part)
        loss, gradient, new_buffers = self._model.gradient(
            params, inputs, targets, self._loss, buffers, seed=k
        )
        self.counters.n_gradient_evals += 1
        self.counters.n_samples += len(targets)
        return Gradient(loss, gradient, new_buffers)

    def linearised(
        self, params: Tensor, buffers: Tensor | None, minibatch: int | None = None
    ) -> Linearised:
        """The network's linear model on one minibatch, in training mode.

        It brings the gradient with it and counts as one gradient evaluation; so does,
        with the minibatch's samples, each product with the Jacobian that is asked of
        it: a product is another pass over them.

        Parameters
        ----------
        params, buffers : (P,), (B,) or None.
        minibatch : its number, from 0; None: that of this step.
        """
        self._require(Information.JACOBIAN_ORACLE)
        inputs, targets, k = self._samples(minibatch)

        def count() -> None:
            self.counters.n_gradient_evals += 1
            self.counters.n_samples += len(targets)

        count()
        found = linearise(
            self._model, params, inputs, targets, self._loss, buffers, seed=k
        )
        return found.counted(count)

    def direct_feedback(
        self,
        params: Tensor,
        buffers: Tensor | None,
        feedback: Feedback,
        minibatch: int | None = None,
    ) -> Gradient:
        """Direct feedback's stand-in for the gradient (``blocks.feedback``).

        A forward pass and each layer's own derivative: less than back-propagation by
        the products that carry the error down. Counted as one gradient evaluation all
        the same, so that no method looks cheaper for doing part of one.

        Parameters
        ----------
        params, buffers : (P,), (B,) or None.
        feedback : (n_classes, width) → the matrix of a layer with outputs of that size.
        minibatch : its number, from 0; None: that of this step.
        """
        self._require(Information.OUTPUT_ERROR)
        self._require(Information.OWN_ACTIVATIONS)
        inputs, targets, k = self._samples(minibatch)
        loss, gradient, new_buffers = direct_feedback(
            self._model, params, inputs, targets, self._loss, feedback, buffers, seed=k
        )
        self.counters.n_gradient_evals += 1
        self.counters.n_samples += len(targets)
        return Gradient(loss, gradient, new_buffers)

    def activity_estimate(self) -> Tensor:
        """(d,) float32: the gradient that the node's own layers estimate.

        The mean of x_n δ_n' over the samples of the record that this step folds
        (``blocks.activity``), from the layers' own inputs and noise and the samples'
        losses. Part of the score, whose loss values are counted there.
        """
        self._require(Information.OWN_ACTIVATIONS)
        self._require(Information.PER_SAMPLE_LOSS)
        if self._credit is None:
            raise ValueError(
                "`oracle` must have the score's activity estimate; got none here. "
                "Score with `blocks.activity.ActivityModel`."
            )
        return self._credit()

    def _samples(
        self, minibatch: int | None, part: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, int]:
        k = self._step if minibatch is None else minibatch
        if part is None:
            return *self._minibatch(k), k
        if self._pooled is None:
            raise ValueError(
                "`oracle` must have a minibatch that all nodes share; got none here. "
                'Declare `data = "pooled"` in the algorithm.'
            )
        return *self._pooled(k, part), k
