"""Where the MNIST benchmarks find the four files, and the options that they share."""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).resolve().parents[2] / "shared" / "datasets" / "mnist"


def mnist_parser(
    description: str | None, seeds: int, workers: int = 2
) -> argparse.ArgumentParser:
    """A parser with ``--mnist``, ``--seeds`` and, unless 0, ``--workers``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--mnist", type=Path, default=HERE, help="folder with the four files"
    )
    parser.add_argument("--seeds", type=int, default=seeds, help="runs of each method")
    if workers:
        parser.add_argument(
            "--workers", type=int, default=workers, help="local Dask workers"
        )
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, once the files are there."""
    options = parser.parse_args()
    if not options.mnist.is_dir():
        parser.error(f"`--mnist` must be a folder; got {options.mnist}. Name one.")
    return options
