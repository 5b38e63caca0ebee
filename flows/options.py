"""The flags of ``ndcao train`` and how they become one run configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.parsing import parse_budget, parse_delays, parse_duration, parse_sizes

if TYPE_CHECKING:
    from pipeline.config import RunConfig

WHAT, METHOD, WHERE, OUTPUT = "What to train", "How", "Where", "Output"


def _option(*names: str, panel: str, help: str, **rest: Any) -> Any:
    return typer.Option(
        *names, help=help, rich_help_panel=panel, show_default=False, **rest
    )


Dataset = Annotated[
    str | None,
    _option(
        "--dataset",
        "-d",
        panel=WHAT,
        help="Name of an ingested data set, or a store's path. Default: digits.",
    ),
]
Model = Annotated[
    str | None,
    _option(
        "--model",
        panel=WHAT,
        help="mlp (default), lenet, cifar_cnn, resnet8, your package.module:factory.",
    ),
]
Hidden = Annotated[
    str | None,
    _option("--hidden", panel=WHAT, help="Hidden layers of mlp: 32, or 64,32."),
]
Init = Annotated[
    str | None,
    _option("--init", panel=WHAT, help="Start from a RUN or a .safetensors file."),
]
AlgorithmName = Annotated[
    str | None,
    _option(
        "--algorithm",
        "-a",
        panel=METHOD,
        help="nd-cao (default) or another; see ndcao algorithms.",
    ),
]
Mode = Annotated[
    str | None,
    _option(
        "--mode",
        "-m",
        panel=METHOD,
        help="sync (default): blocks wait for each other. async: none waits.",
    ),
]
Staleness = Annotated[
    int | None,
    _option(
        "--staleness",
        min=0,
        panel=METHOD,
        help="With async: at most N steps ahead of the slowest block.",
    ),
]
Blocks = Annotated[
    str | None,
    _option(
        "--blocks",
        panel=METHOD,
        help="by_layer, by_unit:9, by_size:8, random:8 or all.",
    ),
]
BlockPatterns = Annotated[
    list[str] | None,
    _option(
        "--block",
        panel=METHOD,
        help="A custom block: regular expression of parameter names. Repeat it.",
    ),
]
Loss = Annotated[
    str | None,
    _option(
        "--loss",
        panel=METHOD,
        help="cross-entropy (default), squared, or your package.module:function.",
    ),
]
BudgetText = Annotated[
    str | None,
    _option(
        "--budget",
        "-b",
        panel=METHOD,
        help="Limits, first reached wins: steps=500 (updates of every block), "
        "loss_values=6000, samples=…, gradient_evals=…, bytes=…, seconds=60.",
    ),
]
Seed = Annotated[int | None, _option("--seed", "-s", min=0, panel=METHOD, help="Seed.")]
Delays = Annotated[
    list[str] | None,
    _option(
        "--delay",
        panel=METHOD,
        help="Slow a block or replica down, for stragglers: 2=50ms. Repeat it.",
    ),
]
Nodes = Annotated[
    int | None,
    _option(
        "--nodes",
        min=1,
        panel=METHOD,
        help="Replicas of a replica method (local-sgd, next, …). Default: 4.",
    ),
]
Machines = Annotated[
    int | None,
    _option(
        "--machines",
        min=1,
        panel=METHOD,
        help="Machines that the replicas are grouped on (node-based: 2).",
    ),
]
Latency = Annotated[
    str | None,
    _option(
        "--latency",
        panel=METHOD,
        help="Slow down what replicas send between machines, to study networks: 20ms.",
    ),
]
Skew = Annotated[
    float | None,
    _option(
        "--skew",
        min=0.0,
        max=1.0,
        panel=METHOD,
        help="Share of the data that replicas get class by class: 0 (default) to 1.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    _option(
        "--set",
        panel=METHOD,
        help="Any other setting: nd_cao.window=100, eval_every=50. Repeat it.",
    ),
]
Calibrate = Annotated[
    bool,
    _option(
        "--calibrate",
        panel=METHOD,
        help="Measure the ways to score joint probes here first; train with the "
        "fastest instead of the one in the table.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    _option(
        "--config", "-c", panel=METHOD, help="YAML file of settings; flags go over it."
    ),
]
ClusterFile = Annotated[
    Path | None,
    _option(
        "--config",
        "-c",
        panel=WHERE,
        help="YAML file of settings: its cluster: section counts, flags go over it.",
    ),
]
Workers = Annotated[
    int | None,
    _option(
        "--workers",
        "-w",
        min=1,
        panel=WHERE,
        help="Worker processes of the local cluster. Default: 2.",
    ),
]
Address = Annotated[
    str | None,
    _option("--address", panel=WHERE, help="A running scheduler: tcp://host:8786."),
]
SchedulerFile = Annotated[
    Path | None,
    _option("--scheduler-file", panel=WHERE, help="Scheduler file of a running one."),
]
Device = Annotated[
    str | None, _option("--device", panel=WHERE, help="cpu (default) or cuda.")
]
Results = Annotated[
    Path | None,
    _option(
        "--results",
        panel=OUTPUT,
        help="Folder of run stores. Default: results under $NDCAO_HOME or here.",
    ),
]
Experiment = Annotated[
    str | None,
    _option("--experiment", panel=OUTPUT, help="Sub-folder of the results."),
]
Again = Annotated[
    bool,
    _option("--again", panel=OUTPUT, help="Train even if this very run exists."),
]
Flow = Annotated[bool, _option("--flow", panel=OUTPUT, help="Run as a Prefect flow.")]
Quiet = Annotated[bool, _option("--quiet", "-q", panel=OUTPUT, help="No progress.")]
Json = Annotated[
    bool, _option("--json", panel=OUTPUT, help="Print one JSON line on stdout.")
]


def nested_flags(
    *,
    dataset: str | None = None,
    model: str | None = None,
    hidden: str | None = None,
    init: str | None = None,
    algorithm: str | None = None,
    mode: str | None = None,
    staleness: int | None = None,
    blocks: str | None = None,
    block: list[str] | None = None,
    loss: str | None = None,
    budget: str | None = None,
    seed: int | None = None,
    delay: list[str] | None = None,
    nodes: int | None = None,
    machines: int | None = None,
    latency: str | None = None,
    skew: float | None = None,
    workers: int | None = None,
    address: str | None = None,
    scheduler_file: Path | None = None,
    device: str | None = None,
    experiment: str | None = None,
) -> dict[str, Any]:
    """Return the settings that were given, nested as in :class:`RunConfig`.

    Raises
    ------
    ValueError — if a value is malformed, or two flags contradict each other.
    """
    if address is not None and scheduler_file is not None:
        raise ValueError(
            "`--address` must not be used with `--scheduler-file`; "
            f"got {address} and {scheduler_file}. Drop one of the two."
        )
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "name": model,
            "hidden": None if hidden is None else parse_sizes(hidden),
        },
        "algorithm": {"kind": algorithm},
        "cluster": {
            "workers": workers,
            "address": address,
            "scheduler_file": None if scheduler_file is None else str(scheduler_file),
        },
    }
    if address is not None:
        sections["cluster"]["kind"] = "address"
    elif scheduler_file is not None:
        sections["cluster"]["kind"] = "scheduler-file"
    flags: dict[str, Any] = {
        "dataset": dataset,
        "init": init,
        "mode": mode,
        "staleness": staleness,
        "blocks": "custom" if block and blocks is None else blocks,
        "custom_blocks": block or None,
        "loss": loss,
        "budget": None if budget is None else parse_budget(budget),
        "seed": seed,
        "delays": parse_delays(delay) if delay else None,
        "nodes": nodes,
        "machines": machines,
        "latency_s": None if latency is None else parse_duration(latency),
        "skew": skew,
        "device": device,
        "experiment": experiment,
    }
    given = {k: v for k, v in flags.items() if v is not None}
    for name, section in sections.items():
        values = {k: v for k, v in section.items() if v is not None}
        if values:
            given[name] = values
    return given


def build_config(
    path: Path | None, overrides: list[str] | None, flags: dict[str, Any]
) -> RunConfig:
    """Return the run configuration: the file, then the flags, then ``--set``."""
    from pipeline.config import load_config

    return load_config(path, overrides or [], flags)
