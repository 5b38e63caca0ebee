"""What a GPU makes of it: share of its matrix rate, population sizes, accuracy.

The rate of a large product is measured in the same process, in the same precision; a
population's evaluation is divided by it, as the operations that it takes a second: the
first layer's product with the centre is shared by all probes and that of a
perturbation by its pair, and each counts once. Then K is doubled until the memory is
full. Last, MNIST and CIFAR-10 are trained for equal times by low-rank probes, activity
perturbation and back-propagation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _command import TYPED
from minute_mnist import METHODS, MLP, SGD, Method, ndcao, settings
from torch import Tensor

from blocks.algorithm import Message
from blocks.forward import FlatModel
from blocks.joint_probes import JointProbes, draw_probes, matrices_of
from blocks.losses import cross_entropy
from blocks.models import build_model
from blocks.open_es import OpenES
from blocks.partition import partition
from blocks.precision import Precision, dtype_of
from blocks.probe_losses import probe_losses

GOAL = 0.5
IMAGE, CLASSES = (3, 32, 32), 10
SHARED = Path(__file__).resolve().parents[2] / "shared" / "datasets"
CNN = ("--model", "cifar_cnn")
ACTIVITY = ("-a", "activity-perturbation", *settings("loss_samples=4096"))
ON_IMAGES = {
    "mnist": (
        Method("sgd", 0.0, (*MLP, *SGD)),
        next(m for m in METHODS if m.name == "low_rank_probes_mlp"),
        Method("activity-perturbation", 0.0, (*MLP, *ACTIVITY)),
    ),
    "cifar10": (
        Method("sgd", 0.0, (*CNN, *SGD)),
        Method("activity-perturbation", 0.0, (*CNN, *ACTIVITY)),
    ),
}


def main() -> None:
    """Measure, print, and end with the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu tries the script out")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 1024])
    parser.add_argument("--probes", type=int, default=512, help="K of the shares")
    parser.add_argument("--samples", type=int, default=1024, help="of a loss value")
    parser.add_argument("--most", type=int, default=2**20, help="largest K tried")
    parser.add_argument("--product", type=int, default=8192, help="rows of the peer's")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training")
    parser.add_argument("--mnist", type=Path, default=SHARED / "mnist")
    parser.add_argument(
        "--cifar10", type=Path, default=SHARED / "cifar10" / "cifar-10-jpeg.zip"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured.", file=sys.stderr)
        sys.exit(2)
    if options.device == "cuda":
        print(torch.cuda.get_device_name())
    lines = [*shares(options), sizes(options)]
    if options.seconds:
        lines += accuracies(options)
    for line in lines:
        print(json.dumps(line))


# -- share of the matrix rate ---------------------------------------------------------


def shares(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Operations a second of the evaluation ÷ those of one large product."""
    lines = []
    for precision in ("float32", "bfloat16"):
        rate = matrix_rate(options.product, precision, options.device)
        print(f"{precision}: {rate / 1e12:,.2f} · 10¹² operations/s in one product")
        for rank in (0, 1):
            model, draw = population(options, options.probes, rank)
            drawing = seconds_of(draw, options.device)
            score = partial(evaluate, options, model, draw(), dtype=dtype_of(precision))
            seconds = seconds_of(score, options.device)
            done = operations(options.hidden, options.samples, options.probes, rank)
            found = {
                "name": f"gpu.share_of_matrix_rate_rank{rank}_{precision}",
                "value": round(done / seconds / rate, 3),
                "goal": GOAL,
                "ok": done / seconds / rate >= GOAL,
                "command": TYPED,
                "device": name_of(options.device),
                "loss_values_per_s": round(options.probes / seconds),
                "with_drawing_per_s": round(options.probes / (seconds + drawing)),
            }
            print(found)
            lines.append(found)
    return lines


def matrix_rate(size: int, precision: Precision, device: str) -> float:
    """Operations (multiply and add: two) a second of a square product."""
    a, b = torch.randn(
        (2, size, size), device=device, dtype=dtype_of(precision)
    ).unbind()
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def operations(hidden: Sequence[int], n: int, n_probes: int, rank: int) -> float:
    """Multiplications and additions of one evaluation, what is shared counted once."""
    widths = [3 * 32 * 32, *hidden, CLASSES]
    pairs, done = n_probes // 2, 0.0
    for index, (i, o) in enumerate(itertools.pairwise(widths)):
        columns = n if index == 0 else 2 * n  # a pair's inputs are one at first
        if rank == 0:
            done += pairs * i * o * columns + (i * o * n if index == 0 else 0)
        else:
            done += i * o * n if index == 0 else pairs * i * o * columns
            done += pairs * rank * (i * columns + o * 2 * n)
    return 2 * done


def population(
    options: argparse.Namespace, n_probes: int, rank: int
) -> tuple[FlatModel, Callable[[], JointProbes]]:
    """A network, and what draws its probes."""
    module = build_model("mlp", IMAGE, CLASSES, hidden=options.hidden)
    model = FlatModel(module, device=options.device)
    algorithm = OpenES(population_size=n_probes, probe_kind="sign", rank=rank)
    blocks = partition("all", module)
    matrices = matrices_of(algorithm, blocks, model.layout)
    message = Message(model.initial_params().to(options.device), probe_std=0.01)

    def draw() -> JointProbes:
        return draw_probes(
            *(algorithm, 0, {0: message}, (0,), blocks, matrices, model.n_params),
            torch.device(options.device),
        )

    return model, draw


def evaluate(
    options: argparse.Namespace,
    model: FlatModel,
    probes: JointProbes,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """All losses of a population on one batch."""
    x, targets = batch(options.samples, options.device)
    parts = probe_losses(model, probes, cross_entropy, dtype=dtype)
    return torch.cat([part(x, targets) for _, part in parts])


def batch(n: int, device: str) -> tuple[Tensor, Tensor]:
    """Random images and classes."""
    x = torch.randn((n, *IMAGE), generator=torch.Generator().manual_seed(0))
    return x.to(device), (torch.arange(n) % CLASSES).to(device)


def seconds_of(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median seconds of a repetition after a warm-up."""
    found = []
    for _ in range(repeats + 1):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def wait_for(device: str) -> None:
    """Let the device finish."""
    if device == "cuda":
        torch.cuda.synchronize()


# -- sizes that fit --------------------------------------------------------------------


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """The largest K, by doubling, whose probes and losses the memory holds."""
    fit = {}
    for rank in (0, 1):
        fit[rank] = largest(options, rank)
        print(f"rank {rank}: populations up to {fit[rank]:,} fit")
    return {
        "name": "gpu.largest_population",
        "value": fit[0],
        "rank1": fit[1],
        "command": TYPED,
        "device": name_of(options.device),
        "tried_up_to": options.most,
        "parameters": population(options, 2, 0)[0].n_params,
    }


def largest(options: argparse.Namespace, rank: int) -> int:
    """Double K until it does not fit, or ``--most`` is reached; 0 if none does."""
    fits, k = 0, 64
    while k <= options.most:
        try:
            model, draw = population(options, k, rank)
            evaluate(options, model, draw())
        except torch.OutOfMemoryError:
            break
        fits, k = k, 2 * k
    # Trainings follow in other processes, and here nothing refers to probes any more.
    torch.cuda.empty_cache()
    return fits


# -- accuracy --------------------------------------------------------------------------


def accuracies(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Test accuracy after equal times, through ``ndcao train``."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="ndcao-gpu-") as name:
        home = Path(name)
        for data, methods in ON_IMAGES.items():
            source = getattr(options, data)
            if not source.exists():
                print(f"`--{data}` must exist; got {source}. Left out.")
                continue
            kind = "image-folder" if source.suffix == ".zip" else data
            ndcao(
                *(home, "ingest", kind, "--from", str(source)),
                *("--store", str(home / "data" / f"{data}.zarr")),
            )
            found = {m.name: trained(home, data, m, options) for m in methods}
            lines += [
                {
                    "name": f"gpu.{data}_accuracy_{method}",
                    "value": accuracy,
                    "minus_back_propagation": round(accuracy - found["sgd"], 4),
                    "seconds": options.seconds,
                    "command": TYPED,
                    "device": name_of(options.device),
                }
                for method, accuracy in found.items()
            ]
    return lines


def trained(
    home: Path, data: str, method: Method, options: argparse.Namespace
) -> float:
    """Test accuracy of one training of ``--seconds``; a pilot run sets the schedule."""
    words = ("train", "-d", data, *method.flags, "--device", options.device, "--quiet")
    pilot = ndcao(home, *words, "--seed", "99", "--budget", "seconds=5")
    samples = int(pilot["n_samples"] * options.seconds / pilot["wall_time_s"])
    budget = f"samples={samples},seconds={options.seconds:g}"
    run = ndcao(home, *words, "--budget", budget)
    print(f"{data}, {method.name}: {run['test_accuracy']} after {samples:,} samples")
    return float(run["test_accuracy"])


def name_of(device: str) -> str:
    """The card's name."""
    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    main()
