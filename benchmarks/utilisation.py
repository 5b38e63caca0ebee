"""Share of the time in which a batch's workers are inside an update or a score.

16 short synchronous ND-CAO runs go through ``experiment_flow`` on Prefect's temporary
server and a local cluster of 2 workers. The share is worker-seconds inside updates and
scores ÷ (2 × seconds from the first to the last of them over the whole batch). What a
score waits for the board is outside, evaluations of the three splits too; the share
with evaluations is given beside it. Runs are evaluated every 50 rounds. Data are random
images.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from _command import TYPED

WORKERS = 2
BATCH = """\
name: utilisation
base:
  dataset: {store}
  model: {{name: mlp, hidden: [{hidden}]}}
  loss_samples: {samples}
  eval_every: 50
  cluster: {{workers: {workers}}}
grid:
  blocks: ["by_size:4", "by_size:8"]
seeds: {seeds}
budget: {{steps: {steps}}}
"""


def main() -> None:
    """Run the batch twice, and end with the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=16, help="runs in the batch")
    parser.add_argument("--steps", type=int, default=400, help="rounds of a run")
    parser.add_argument("--samples", type=int, default=40_000, help="of a score")
    parser.add_argument("--hidden", type=int, default=32, help="units of the network")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ndcao-utilisation-") as name:
        os.environ["PREFECT_HOME"] = f"{name}/prefect"
        os.environ.pop("PREFECT_API_URL", None)
        os.environ["NDCAO_HOME"] = name
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for line in measure(Path(name), options):
            print(json.dumps(line))


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Run the batch twice; the figures."""
    import flows  # noqa: F401  (sets Prefect's defaults)
    from flows.experiment import experiment_flow

    logging.getLogger("distributed").setLevel(logging.ERROR)
    path = folder / "batch.yaml"
    path.write_text(
        BATCH.format(
            store=make_store(folder),
            hidden=options.hidden,
            samples=options.samples,
            workers=WORKERS,
            seeds=options.runs // 2,
            steps=options.steps,
        )
    )
    began = time.monotonic()
    answer = experiment_flow(str(path), results=str(folder / "results"))
    first_s = time.monotonic() - began
    runs = [read(row) for row in stores(folder)]
    began = time.monotonic()
    again = experiment_flow(str(path), results=str(folder / "results"))
    second_s = time.monotonic() - began
    if answer["n_complete"] != options.runs or again["n_skipped"] != options.runs:
        raise RuntimeError(f"the batch must complete; got {answer['failed']}.")
    figures = shares(runs)
    print(
        f"{options.runs} runs of {options.steps} rounds in {first_s:.1f} s, "
        f"score {1e3 * figures['score_s']:.0f} ms, run {figures['run_s']:.1f} s, "
        f"idle between runs {figures['between']:.3f}, "
        f"with evaluations {figures['with_evaluations']:.3f}"
    )
    share = float(figures.pop("share"))
    more = {name: round(float(value), 4) for name, value in figures.items()}
    return [
        {
            "name": "utilisation.workers_computing",
            "value": round(share, 3),
            "goal": 0.85,
            "ok": bool(share >= 0.85),
            "command": TYPED,
            **more,
            "batch_s": round(first_s, 1),
        },
        {
            "name": "utilisation.second_invocation_s",
            "value": round(second_s, 2),
            "goal": 10.0,
            "ok": second_s <= 10.0,
            "command": TYPED,
        },
    ]


def make_store(folder: Path) -> Path:
    """Ingest random images of MNIST's shape."""
    from pipeline.store import ingest

    rng = np.random.default_rng(0)
    raw = folder / "random.npz"
    np.savez(
        raw,
        x_train=rng.integers(0, 256, (60_000, 28, 28), dtype=np.uint8),
        y_train=np.arange(60_000) % 10,
        x_test=rng.integers(0, 256, (2_000, 28, 28), dtype=np.uint8),
        y_test=np.arange(2_000) % 10,
    )
    return ingest("npz", source=raw, store=folder / "random.zarr").path


def stores(folder: Path) -> list[Path]:
    """The batch's run stores."""
    return sorted((folder / "results" / "utilisation").glob("*.zarr"))


def read(store: Path) -> dict[str, object]:
    """Busy intervals of one run in wall seconds, and the seconds of its evaluations."""
    from pipeline.run_store import open_run

    ds = open_run(store)
    origin = ds.attrs["first_update_at_s"]
    names = ("start_s", "end_s", "score_start_s", "score_end_s")
    a, b, c, d = (ds[name].values + origin for name in names)
    return {
        "start": np.concatenate([a, c]),
        "end": np.concatenate([b, d]),
        "score_s": float(np.median(d - c)),
        "evaluations_s": float(ds.attrs["eval_time_s"]),
    }


def shares(runs: list[dict[str, object]]) -> dict[str, float]:
    """Shares of the batch's worker-seconds.

    Every run had one worker to itself, so its intervals do not overlap each other.
    """
    first = min(run["start"].min() for run in runs)
    last = max(run["end"].max() for run in runs)
    whole = WORKERS * (last - first)
    busy = sum((run["end"] - run["start"]).sum() for run in runs)
    lasted = [run["end"].max() - run["start"].min() for run in runs]
    evaluations = sum(run["evaluations_s"] for run in runs)
    return {
        "share": busy / whole,
        "with_evaluations": (busy + evaluations) / whole,
        "between": 1 - sum(lasted) / whole,
        "score_s": float(np.median([run["score_s"] for run in runs])),
        "run_s": float(np.median(lasted)),
    }


if __name__ == "__main__":
    main()
