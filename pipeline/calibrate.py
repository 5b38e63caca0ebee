"""Which form of evaluation is the fastest for a run, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from blocks.algorithm import Message
from blocks.batched import Form, is_perceptron
from blocks.joint_probes import draw_probes
from blocks.partition import split
from blocks.precision import dtype_of
from blocks.probe_losses import probe_losses
from blocks.usercode import UserCodeError
from pipeline.config import RunConfig
from pipeline.context import Context, RunSpec
from pipeline.data_store import open_store
from pipeline.resolve import resolve
from pipeline.store import ensure_store

TURNS = 5  # timed scores of a form, after one that warms it up
LONG_S = 2.0  # a form whose first timed score takes longer is not timed again


@dataclass(frozen=True, slots=True)
class Timing:
    """What one form takes to score one shard."""

    form: Form
    seconds: float  # the least of all turns; NaN if the model cannot be computed so
    values_per_s: float  # loss values of one shard's samples
    why_not: str = ""


def calibrate(
    config: RunConfig, clock: Callable[[], float] = time.perf_counter
) -> tuple[RunConfig, list[Timing]]:
    """Measure the forms that suit a run's model and return the run with the fastest.

    Every form scores the first shard of the run's own scoring subset, all K probes, on
    the configured device and threads; the forms take turns. The choice is part of the
    configuration from then on, and of the run's id: resumed runs, replays and workers
    use what is recorded and never measure.

    Parameters
    ----------
    config : any configuration with joint probes.
    clock : seconds, for tests.

    Returns
    -------
    The configuration with ``evaluation_form`` set, and the timings, fastest first.

    Raises
    ------
    ValueError — if the algorithm scores one point a version, so that there is nothing
        to choose; if a form is set already; or as ``resolve`` does.
    """
    algorithm = config.algorithm
    if algorithm.n_probes == 1 or not hasattr(algorithm, "probe_kind"):
        raise ValueError(
            "`--calibrate` must be used with joint probes; got one point a version of "
            f"{algorithm.kind}. Drop the flag, or ask for probes, as open-es has them."
        )
    if config.evaluation_form != "auto":
        raise ValueError(
            '`evaluation_form` must be "auto" with `--calibrate`; got '
            f'"{config.evaluation_form}". Drop one of the two.'
        )
    path = ensure_store(config.dataset)
    data = open_store(path)
    resolved = resolve(config, data)
    spec = RunSpec("calibration", resolved, str(path), data.content_sha256, 0)
    context = Context(spec, data)
    timings = _measured(context, _suitable(context), clock)
    timings.sort(key=lambda t: (t.seconds != t.seconds, t.seconds))  # NaN last
    return config.model_copy(update={"evaluation_form": timings[0].form}), timings


def _suitable(context: Context) -> list[Form]:
    if is_perceptron(context.model.module):
        return ["pairs", "bmm", "vmap", "loop"]
    return ["vmap", "loop"]


def _measured(
    context: Context, forms: list[Form], clock: Callable[[], float]
) -> list[Timing]:
    refused: dict[Form, str] = {}
    seconds: dict[Form, list[float]] = {}
    for turn in range(1 + TURNS):
        for form in forms:
            if form in refused or min(seconds.get(form, [0.0])) > LONG_S:
                continue
            began = clock()
            try:
                _score(context, form)
            except (RuntimeError, UserCodeError) as err:  # vmap takes not every one
                if form == "loop":
                    raise
                refused[form] = str(err).splitlines()[0]
                continue
            if turn:  # the first one warms up
                seconds.setdefault(form, []).append(clock() - began)
    k = context.algorithm.n_probes
    found = {form: min(times) for form, times in seconds.items()}
    return [
        Timing(form, found[form], k / found[form])
        if form in found
        else Timing(form, float("nan"), float("nan"), refused[form])
        for form in forms
    ]


def _score(context: Context, form: Form) -> None:
    """Score the joint probes around the initial parameters on the first shard."""
    algorithm, parts = context.algorithm, split(context.initial, context.blocks)
    messages = {i: Message(part, probe_std=1e-3) for i, part in enumerate(parts)}
    probes = draw_probes(
        algorithm,
        context.config.seed,
        messages,
        (0,) * context.n_nodes,
        context.blocks,
        context.matrices,
        context.model.n_params,
        context.device,
    )
    dtype = dtype_of(context.config.precision)
    for _, losses in probe_losses(
        context.model, probes, context.loss_function, form, context.buffers, dtype
    ):
        for inputs, targets in context.data.batches("loss", [0], 0):
            losses(inputs, targets)
    if context.device.type == "cuda":
        torch.cuda.synchronize()
