"""Block update by drawing every candidate ÷ by exact screening, same block and window.

One block of 100,000 parameters, a full window of 50 pairs whose Gram matrix is kept up
to date, 1,000 candidates, one thread. Whole steps are timed: fold, fit, choose, move.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _command import TYPED

from blocks.algorithm import Information, LossRecord, Node, Observation, step_rng
from blocks.nd_cao import NDCAO

GOAL = 50.0


def main() -> None:
    """Time both forms in turn and end with the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=100_000, help="parameters, d")
    parser.add_argument("--window", type=int, default=50, help="pairs, T")
    parser.add_argument("--candidates", type=int, default=1_000, help="candidates, M")
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs of steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [measure(options, name) for name in ("linear", "kernel")]
    for text in lines:
        print(text)


def measure(options: argparse.Namespace, estimator: str) -> str:
    """Return one estimator's figure as JSON."""
    exact = NDCAO(
        estimator=estimator,  # type: ignore[arg-type]
        window=options.window,
        candidates=options.candidates,
    )
    explicit = replace(exact, screening="explicit")
    state = filled(exact, options.size, options.window)
    slow, fast = [], []
    for version in range(options.window, options.window + options.repeats + 1):
        record = loss_record(version)
        seconds, following = timed_step(exact, state, record)
        fast.append(seconds)
        slow.append(timed_step(explicit, state, record)[0])
        state = following
    slow, fast = slow[1:], fast[1:]  # the first pair warms up
    ratio = statistics.median(slow) / statistics.median(fast)
    print(
        f"{estimator}: explicit {statistics.median(slow) * 1e3:.0f} ms, "
        f"exact {statistics.median(fast) * 1e3:.2f} ms"
    )
    figure = {
        "name": f"screening.{estimator}_explicit_over_exact",
        "value": round(ratio, 1),
        "goal": GOAL,
        "ok": ratio >= GOAL,
        "command": TYPED,
    }
    return json.dumps(figure)


def loss_record(version: int) -> LossRecord:
    """Return a record of one scalar loss of one block."""
    return LossRecord("benchmark", version, (1.0 + 0.01 * np.sin(version),), (version,))


def filled(algorithm: NDCAO, size: int, window: int) -> Any:
    """Return the state of a block whose window is full."""
    node = Node(0, 1)
    oracle: Any = None  # ND-CAO asks nothing of it
    params = torch.zeros(size)
    state, _ = algorithm.init(node, params, oracle, step_rng(0, 0, -1))
    for step in range(window):
        observation = see(step, loss_record(step))
        rng = step_rng(0, 0, step)
        state, _ = algorithm.step(state, observation, oracle, rng)
    return state


def see(step: int, record: LossRecord) -> Observation:
    """Return the observation of one step."""
    return Observation(step, 1_000, Information.SHARED_LOSS, record)


def timed_step(algorithm: NDCAO, state: Any, record: LossRecord) -> tuple[float, Any]:
    """Seconds of one step from ``state``, and the state after it."""
    oracle: Any = None
    observation = see(record.version, record)
    began = time.perf_counter()
    rng = step_rng(0, 0, record.version)
    following, _ = algorithm.step(state, observation, oracle, rng)
    return time.perf_counter() - began, following


if __name__ == "__main__":
    main()
