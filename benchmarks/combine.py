"""Time and memory of combining 1,000 run stores, in a process that does nothing else.

The stores are synthetic, of four lengths (25 to 100 evaluations, 600 to 2,400 updates),
in two modes and with three settings. Measured are `combine_runs` alone; with every
evaluation of every run read and a table made of them; with the report's page written
as well; and the peak memory of all that.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _command import TYPED

GOAL_S, GOAL_MB = 20.0, 1024.0
LENGTHS = (25, 50, 75, 100)
ROUNDS_AN_EVALUATION = 8
NODES, PARAMETERS = 3, 500


def main() -> None:
    """Make the stores, measure, and end with the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many stores")
    parser.add_argument("--repeats", type=int, default=3, help="processes measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ndcao-combine-") as name:
        make_stores(Path(name), options.runs)
        found = [measured(Path(name)) for _ in range(options.repeats)]
    for one in found:
        print(f"{options.runs} runs:", one)
    for key, goal in (
        ("combine_s", GOAL_S),
        ("combine_and_read_s", GOAL_S),
        ("combine_and_report_s", GOAL_S),
        ("peak_memory_mb", GOAL_MB),
    ):
        values = [one[key] for one in found]
        value = statistics.median(values)
        figure = {
            "name": f"combine.{key}",
            "value": round(value, 2),
            "goal": goal,
            "ok": value <= goal,
            "command": TYPED,
            "n_runs": options.runs,
            "spread": [round(min(values), 2), round(max(values), 2)],
        }
        print(json.dumps(figure))


def measured(folder: Path) -> dict[str, float]:
    """Return the figures of a process of its own."""
    answer = subprocess.run(
        [sys.executable, __file__, "measure", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    figures: dict[str, float] = json.loads(answer.stdout)
    return figures


def measure(folder: Path) -> dict[str, float]:
    """Combine all stores of a folder and report them in this process."""
    from pipeline.compare import combine_runs, loaded, summary_table
    from pipeline.report import write_report

    paths = sorted(folder.glob("*.zarr"))
    start = time.perf_counter()
    ds = combine_runs(paths)
    combined = time.perf_counter() - start
    ds = loaded(ds)
    rows = len(summary_table(ds))
    whole = time.perf_counter() - start
    assert rows == len(paths)
    page = write_report(ds, folder / "report.html")
    reported = time.perf_counter() - start
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 1024 if sys.platform == "linux" else 1024**2  # macOS counts bytes
    return {
        "combine_s": combined,
        "combine_and_read_s": whole,
        "combine_and_report_s": reported,
        "page_mb": page.stat().st_size / 1e6,
        "peak_memory_mb": peak_kb / scale,
    }


def make_stores(folder: Path, n_runs: int) -> None:
    """Write one store of each length, and copies of them that say who they are."""
    import zarr

    from pipeline.run_store import write_run
    from pipeline.sealed import seal

    templates = []
    for n_evals in LENGTHS:
        path = folder / f"template-{n_evals}"
        templates.append(write_run(synthetic_run(n_evals), path))
    for number in range(n_runs):
        mode = ("sync", "async")[number % 2]
        seed, window = number // 6, (50, 100, 200)[number // 2 % 3]
        store = folder / f"run-{number:05d}.zarr"
        shutil.copytree(templates[number % len(templates)], store)
        group = zarr.open_group(store, mode="r+")
        attrs: dict[str, Any] = dict(group.attrs)
        config = json.loads(attrs["config"]) | {"seed": seed, "mode": mode}
        config["algorithm"]["window"] = window
        attrs |= {"run_id": store.stem, "mode": mode, "seed": seed}
        attrs["config"] = json.dumps(config)
        seal(group, store, attrs)
    for template in templates:
        shutil.rmtree(template)


def synthetic_run(n_evals: int) -> Any:
    """Return a run that follows the schema, of random values."""
    import xarray as xr

    from pipeline.config import validate_config
    from pipeline.schema import ATTRIBUTES, VARIABLES, variable

    rng = np.random.default_rng(n_evals)
    n_rounds = ROUNDS_AN_EVALUATION * n_evals
    sizes = {"eval": n_evals, "update": n_rounds * NODES, "score": n_rounds}
    sizes |= {"node": NODES, "probe": 1, "parameter": PARAMETERS}
    data = {
        spec.name: variable(
            spec.name, np.cumsum(rng.random([sizes[d] for d in spec.dims]) * 10, axis=0)
        )
        for spec in VARIABLES.values()
        if spec.required
    }
    updates = np.arange(n_rounds * NODES)
    data["update_node"] = variable("update_node", updates % NODES)
    data["worker"] = variable("worker", updates % 2)
    config = validate_config({"algorithm": {"kind": "nd-cao"}, "dataset": "digits"})
    plain: dict[type, Any] = {str: "x", int: 1, float: 0.5, bool: False, list: ["0"]}
    attrs = {
        name: "{}" if spec.json else plain[spec.types[0]]
        for name, spec in ATTRIBUTES.items()
        if spec.required
    }
    attrs |= {"config": config.model_dump_json(), "status": "complete"}
    return xr.Dataset(data, attrs=attrs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main()
