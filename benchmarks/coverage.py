"""How often intervals that say 95 % hold the truth, by simulation.

Normal values, and log-normal ones (skewness 6) as a case that is hard for all of them.
A plain percentile bootstrap is measured beside ours, as what we do not use.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
from _command import TYPED

GOALS = (0.92, 0.97)
SIZES = (3, 5, 10, 30)
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
Ends = Callable[[np.ndarray], tuple[float, float]]


def main() -> None:
    """Print the table and end with the JSON lines of the normal case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, help="samples a figure")
    options = parser.parse_args()
    lines = []
    for case, (draw, truths) in CASES.items():
        for name, ends in METHODS.items():
            found = {
                n: coverage(ends, draw, truths(name, n), n, options.repeats)
                for n in SIZES
            }
            texts = "  ".join(f"n = {n}: {share:.3f}" for n, share in found.items())
            print(f"{case:10} {name:19} {texts}")
            if case == "normal" and name != "percentile":
                lines += [figure(name, n, found[n]) for n in (5, 10, 30)]
    for line in lines:
        print(line)


def coverage(ends: Ends, draw: Draw, truth: float, n: int, repeats: int) -> float:
    """Return the share of samples of size n whose interval holds the truth."""
    samples = draw(np.random.default_rng([n, 1]), (repeats, n))
    both = (ends(sample) for sample in samples)
    return float(np.mean([low <= truth <= high for low, high in both]))


def figure(name: str, n: int, share: float) -> str:
    """Return one figure as JSON."""
    return json.dumps(
        {
            "name": f"coverage.{name.replace(' ', '_')}_n{n}",
            "value": round(share, 4),
            "goal": list(GOALS),
            "ok": GOALS[0] <= share <= GOALS[1],
            "command": TYPED,
        }
    )


def of_mean(x: np.ndarray) -> tuple[float, float]:
    """Ours, of a mean or of the mean of paired differences."""
    from pipeline.statistics import mean

    found = mean(x)
    return found.low, found.high


def of_interquartile_mean(x: np.ndarray) -> tuple[float, float]:
    """Ours, of an interquartile mean."""
    from pipeline.statistics import interquartile_mean

    found = interquartile_mean(x)
    return found.low, found.high


def of_percentiles(x: np.ndarray) -> tuple[float, float]:
    """A plain percentile bootstrap of the mean."""
    rng = np.random.default_rng(1)
    means = x[rng.integers(0, len(x), (999, len(x)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw standard normal values."""
    return rng.standard_normal(shape)


def log_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw values whose logarithms are standard normal."""
    return np.exp(rng.standard_normal(shape))


def expected(name: str, n: int) -> float:
    """Return what the log-normal figure is of n values on average."""
    if name != "interquartile mean":
        return float(np.exp(0.5))
    samples = np.sort(log_normal(np.random.default_rng(2), (200_000, n)), axis=1)
    return float(samples[:, n // 4 : n - n // 4].mean())


METHODS: dict[str, Ends] = {
    "mean": of_mean,
    "interquartile mean": of_interquartile_mean,
    "percentile": of_percentiles,
}
CASES: dict[str, tuple[Draw, Callable[[str, int], float]]] = {
    "normal": (normal, lambda _name, _n: 0.0),
    "log-normal": (log_normal, expected),
}


if __name__ == "__main__":
    main()
