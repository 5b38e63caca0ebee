"""Loss values/s of joint probes ÷ EvoTorch's SNES on an MLP; ÷ a plain loop on LeNet.

Whole generations are timed: drawing, evaluation, update. MLP 784-32-10, 256 probes of
256 samples, dense and of rank 1, against SNES with as many candidates, evaluated by
``torch.func.vmap``; LeNet, 64 dense probes of 256 samples, against setting the weights
of one candidate after another. One thread, float32, the same samples; the sides take
turns, medians of the turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _command import TYPED
from torch import Tensor
from torch.nn import functional

from blocks.algorithm import Information, LossRecord, Node, Observation, step_rng
from blocks.forward import FlatModel
from blocks.joint_probes import draw_probes, matrices_of
from blocks.losses import cross_entropy
from blocks.models import build_model
from blocks.open_es import OpenES
from blocks.optimisers import Adam
from blocks.partition import partition
from blocks.probe_losses import probe_losses
from blocks.probes import directions

GOALS = {"dense": 1.8, "rank1": 8.0, "lenet": 1.0}
STD, STEP = 0.02, 5e-3
Generation = Callable[[], object]


def main() -> None:
    """Measure, print, and end with the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9, help="timed turns of each side")
    parser.add_argument("--probes", type=int, default=256, help="of the MLP, K")
    parser.add_argument("--samples", type=int, default=256, help="behind a loss value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.random((options.samples, 1, 28, 28)), dtype=torch.float32)
    targets = torch.tensor(rng.integers(0, 10, options.samples))
    lines = [measure_lenet(options.turns, x, targets)]
    try:
        peer = snes(options.probes, x, targets)
    except ImportError as err:
        print(f"EvoTorch is missing ({err}): nothing to divide by.", file=sys.stderr)
        print('Install it with: pip install -c constraints.txt ".[bench]"')
        print(lines[0])
        sys.exit(2)
    lines = [*measure_mlp(options, peer, x, targets), *lines]
    for text in lines:
        print(text)


def measure_mlp(
    options: argparse.Namespace, peer: Generation, x: Tensor, targets: Tensor
) -> list[str]:
    """Return the figures of dense and of rank-1 probes as JSON."""
    sides = {
        "snes": peer,
        "dense": search("mlp", options.probes, 0, x, targets),
        "rank1": search("mlp", options.probes, 1, x, targets),
    }
    rates = measured(sides, options.turns, options.probes)
    return [
        line(f"{name}_over_evotorch_snes", rates, name, "snes", GOALS[name])
        for name in ("dense", "rank1")
    ]


def measure_lenet(turns: int, x: Tensor, targets: Tensor) -> str:
    """Return the figure of dense probes of LeNet as JSON."""
    sides = {
        "loop": plain_loop("lenet", 64, x, targets),
        "lenet": search("lenet", 64, 0, x, targets),
    }
    rates = measured(sides, turns, 64)
    return line("lenet_dense_over_plain_loop", rates, "lenet", "loop", GOALS["lenet"])


def measured(
    sides: dict[str, Generation], turns: int, n_values: int
) -> dict[str, list[float]]:
    """Loss values/s of every side at every turn; about 0.3 s a turn after a warm-up."""
    counts = {}
    for name, generation in sides.items():
        generation()
        began = time.perf_counter()
        generation()
        counts[name] = max(int(0.3 / (time.perf_counter() - began)), 1)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, generation in sides.items():
            began = time.perf_counter()
            for _ in range(counts[name]):
                generation()
            seconds = time.perf_counter() - began
            rates[name].append(n_values * counts[name] / seconds)
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):,.0f} loss values/s")
    return rates


def search(
    model_name: str, n_probes: int, rank: int, x: Tensor, targets: Tensor
) -> Generation:
    """One generation of OpenAI-ES with signs, as a run computes it."""
    module = network(model_name)
    model = FlatModel(module)
    algorithm = OpenES(
        population_size=n_probes,
        noise_std=STD,
        step_size=STEP,
        probe_kind="sign",
        rank=rank,
    )
    blocks = partition("all", module)
    matrices = matrices_of(algorithm, blocks, model.layout)
    node = Node(0, 1, blocks[0], matrices=matrices[0])
    oracle: Any = None  # evolution asks nothing of it
    params = model.initial_params()
    held = [0, *algorithm.init(node, params, oracle, step_rng(0, 0, -1))]

    def generation() -> None:
        step, state, message = held
        probes = draw_probes(
            algorithm, 0, {0: message}, (step,), blocks, matrices, model.n_params
        )
        sums = torch.cat(
            [part(x, targets) for _, part in probe_losses(model, probes, cross_entropy)]
        )
        losses = tuple((sums / len(targets)).tolist())
        record = LossRecord("benchmark", step, losses, (step,))
        observation = Observation(step, 0, Information.SHARED_LOSS, record)
        rng = step_rng(0, 0, step)
        held[:] = [step + 1, *algorithm.step(state, observation, oracle, rng)]

    return generation


def plain_loop(
    model_name: str, n_probes: int, x: Tensor, targets: Tensor
) -> Generation:
    """The same generation as one would write it down: candidate after candidate."""
    module = network(model_name).eval()
    parameters = list(module.parameters())
    n_pairs, size = n_probes // 2, sum(p.numel() for p in parameters)
    centre = torch.nn.utils.parameters_to_vector(parameters).detach()
    held: list[Any] = [0, centre, Adam.zeros(centre)]

    @torch.no_grad()
    def generation() -> None:
        step, centre, optimiser = held
        dirs = directions(0, 0, step, n_pairs, size)
        losses = torch.empty((n_pairs, 2))
        for pair in range(n_pairs):
            for side, sign in enumerate((STD, -STD)):
                candidate = torch.add(centre, dirs[pair], alpha=sign)
                torch.nn.utils.vector_to_parameters(candidate, parameters)
                losses[pair, side] = functional.cross_entropy(module(x), targets)
        ranks = losses.flatten().argsort().argsort().view(n_pairs, 2) / n_probes - 0.5
        weights = (ranks[:, 0] - ranks[:, 1]) / (2 * STD * n_pairs)
        optimiser, direction = optimiser.step(dirs.T @ weights, 0.9, 0.999)
        held[:] = [step + 1, centre - STEP * direction, optimiser]

    return generation


def snes(n_candidates: int, x: Tensor, targets: Tensor) -> Generation:
    """One generation of EvoTorch's SNES on the MLP, its fitness vectorised.

    Raises
    ------
    ImportError — without EvoTorch.
    """
    from evotorch import Problem
    from evotorch.algorithms import SNES
    from evotorch.decorators import vectorized
    from evotorch.neuroevolution.net import make_functional_module

    logging.getLogger("evotorch").setLevel(logging.ERROR)
    module = network("mlp")
    run = make_functional_module(module, disable_autograd_tracking=True)
    batched = torch.func.vmap(run, in_dims=(0, None))

    @vectorized
    def fitness(candidates: Tensor) -> Tensor:
        logits = batched(candidates, x).transpose(1, 2)  # (K, classes, n): the faster
        wanted = targets.expand(len(logits), -1)
        losses = functional.cross_entropy(logits, wanted, reduction="none")
        return losses.mean(1)

    centre = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    problem = Problem(
        "min",
        fitness,
        solution_length=run.parameter_length,
        initial_bounds=(-STD, STD),
        dtype=torch.float32,
        seed=0,
    )
    searcher = SNES(problem, popsize=n_candidates, stdev_init=STD, center_init=centre)
    return searcher.step


def network(name: str) -> torch.nn.Module:
    """MLP 784-32-10, or LeNet, for MNIST's images."""
    options = {"hidden": (32,)} if name == "mlp" else {}
    return build_model(name, (1, 28, 28), 10, seed=0, **options)


def line(
    name: str, rates: dict[str, list[float]], ours: str, theirs: str, goal: float
) -> str:
    """Return one figure as JSON."""
    ratio = statistics.median(rates[ours]) / statistics.median(rates[theirs])
    each = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    figure = {
        "name": f"probes.{name}",
        "value": round(ratio, 2),
        "goal": goal,
        "ok": ratio >= goal,
        "command": TYPED,
        "values_per_s": round(statistics.median(rates[ours])),
        "reference_per_s": round(statistics.median(rates[theirs])),
        "turns": len(each),
        "least": round(min(each), 2),
        "most": round(max(each), 2),
    }
    return json.dumps(figure)


if __name__ == "__main__":
    main()
