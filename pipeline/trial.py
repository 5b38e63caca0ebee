"""A run's own network and loss are tried, before anything is written or started."""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.algorithm import Information
from blocks.purity import (
    SAMPLES,
    Code,
    check_curvature,
    check_function,
    check_gradient,
    check_learns,
    check_start,
    fingerprint,
    user_loss,
)
from pipeline.context import Context

_GRADIENTS = (
    Information.GRADIENT_ORACLE | Information.JACOBIAN_ORACLE | Information.OUTPUT_ERROR
)


def try_user_code(context: Context, *, trains: bool = True) -> None:
    """Check what a run needs of the user's code (``blocks.purity``); ours is not tried.

    Parameters
    ----------
    context : of the run, in this process.
    trains : bool — whether the run goes on, so that gradients are tried, too.

    Raises
    ------
    UserCodeError — if the network is no function of the seed, or network or loss
        depend on chance, on earlier calls or on the other samples of a batch.
    """
    model, loss_function = context.model, context.loss_function
    loss_name = user_loss(loss_function)
    if not context.runs_user_code:
        return
    x, targets = context.data.some(SAMPLES)

    def logits(rows: Tensor, theta: Tensor = context.initial) -> Tensor:
        return model.forward(theta, x[rows], context.buffers)

    everything = torch.arange(SAMPLES)
    network = Code("model", model.user, logits)
    if model.user:
        again = fingerprint(context.build(), context.given)
        check_start(model.user, context.origin, again)
        check_function(network, finite=trains)
        check_learns(network, model, lambda theta: logits(everything, theta))
    answers = logits(everything)
    if loss_name:

        def losses(rows: Tensor) -> Tensor:
            with torch.no_grad():
                return loss_function(answers[rows], targets[rows])

        check_function(Code("loss", loss_name, losses), finite=trains)
    if not trains or not context.algorithm.information & _GRADIENTS:
        return
    code = network if model.user else Code("loss", loss_name, logits)
    batch = (context.initial, x, targets, context.buffers)
    check_gradient(code, model, loss_function, *batch)
    if context.algorithm.information & Information.JACOBIAN_ORACLE:
        check_curvature(code, model, loss_function, *batch)
    if not torch.equal(logits(everything), answers):
        raise code.error(
            "keep what training changes in its parameters and float buffers",
            "which is evaluated otherwise after a training pass",
            "Register what it remembers with `register_buffer`, as a float tensor.",
        )
