"""``ndcao train``, ``resume`` and ``demo``: everything that starts a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import options as o
from flows.calibration import calibrated
from flows.cli_runs import Trust
from flows.console import (
    make_fields,
    note,
    out,
    print_error,
    print_json,
    progress_display,
    without_warnings,
)
from flows.environment import default_results
from flows.errors import EXIT_FAILED, EXIT_INTERRUPTED
from flows.outcome import diverged
from flows.stopping import stop_on_signals

if TYPE_CHECKING:
    from pipeline.config import RunConfig


def train(
    dataset: o.Dataset = None,
    model: o.Model = None,
    hidden: o.Hidden = None,
    init: o.Init = None,
    algorithm: o.AlgorithmName = None,
    mode: o.Mode = None,
    staleness: o.Staleness = None,
    blocks: o.Blocks = None,
    block: o.BlockPatterns = None,
    loss: o.Loss = None,
    budget: o.BudgetText = None,
    seed: o.Seed = None,
    delay: o.Delays = None,
    nodes: o.Nodes = None,
    machines: o.Machines = None,
    latency: o.Latency = None,
    skew: o.Skew = None,
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    calibrate: o.Calibrate = False,
    workers: o.Workers = None,
    address: o.Address = None,
    scheduler_file: o.SchedulerFile = None,
    device: o.Device = None,
    results: o.Results = None,
    experiment: o.Experiment = None,
    again: o.Again = False,
    flow: o.Flow = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Train a network and keep the run.

    Without flags it trains the bundled digits. A run that exists already is shown, not
    repeated. Ctrl-C stops at a checkpoint; ndcao resume goes on from there.

    [bold]Examples[/bold]
    $ ndcao train --dataset mnist --mode sync --budget loss_values=6000
    $ ndcao train -d mnist -m async --blocks by_unit:9 --delay 2=50ms
    $ ndcao train -d mnist -a sgd -b steps=500 --set sgd.step_size=0.05
    $ ndcao train -d mnist -a local-sgd --nodes 4 --skew 0.5 -b samples=270000
    $ ndcao train -c run.yaml --address tcp://cluster:8786 --json
    $ ndcao train -d mypackage.zarr --model mypackage.nets:factory --flow
    """
    flags = o.nested_flags(
        dataset=dataset,
        model=model,
        hidden=hidden,
        init=init,
        algorithm=algorithm,
        mode=mode,
        staleness=staleness,
        blocks=blocks,
        block=block,
        loss=loss,
        budget=budget,
        seed=seed,
        delay=delay,
        nodes=nodes,
        machines=machines,
        latency=latency,
        skew=skew,
        workers=workers,
        address=address,
        scheduler_file=scheduler_file,
        device=device,
        experiment=experiment,
    )
    run_config = o.build_config(config, overrides, flags)
    if calibrate:
        run_config = calibrated(run_config, quiet=quiet)
    folder = default_results() if results is None else results
    if flow:
        line = _train_as_flow(run_config, folder, again=again, quiet=quiet)
    else:
        line = _train_here(run_config, folder, again=again, quiet=quiet)
    _finish(line, as_json=as_json)


Run = Annotated[
    str,
    typer.Argument(
        help="Run id (or its start), or the path of its store.", show_default=False
    ),
]


def resume(
    run: Run,
    config: o.ClusterFile = None,
    workers: o.Workers = None,
    address: o.Address = None,
    scheduler_file: o.SchedulerFile = None,
    results: o.Results = None,
    trust: Trust = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Go on with an interrupted run from its last checkpoint.

    A synchronous run ends exactly as if it had never been interrupted, on whatever
    cluster it goes on. The options of a queue or of Kubernetes, and certificates, are
    not kept with a run: give the file that has them.

    [bold]Examples[/bold]
    $ ndcao runs                               (lists what is interrupted)
    $ ndcao resume nd-cao-sync-mnist-s0-1a2b3c
    $ ndcao resume nd-cao-sync-mnist-s0-1a2b3c --workers 4
    $ ndcao resume nd-cao-sync-mnist-s0-1a2b3c --config run.yaml
    """
    from pipeline.runs import summary
    from pipeline.train import resume as resume_run

    folder = default_results() if results is None else results
    flags = o.nested_flags(
        workers=workers, address=address, scheduler_file=scheduler_file
    )
    cluster = flags.get("cluster")
    if config is not None:
        found = o.build_config(config, None, flags)
        cluster = found.cluster.model_dump(exclude_unset=True)
    with (
        progress_display(run, quiet=quiet) as progress,
        stop_on_signals(note) as stop,
    ):
        dataset = resume_run(
            run,
            results=folder,
            progress=progress,
            stop=stop.event,
            cluster=cluster,
            trust=trust,
        )
    _finish(summary(dataset), as_json=as_json)


def demo(
    seeds: Annotated[
        int, typer.Option(min=1, max=10, help="Seeds of every method.")
    ] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    results: o.Results = None,
    report: Annotated[
        Path, typer.Option("--out", help="The comparison page to write.")
    ] = Path("report.html"),
    again: o.Again = False,
) -> None:
    """Show the whole path in about two minutes, with no network.

    Digits into a store; ND-CAO synchronous, ND-CAO asynchronous and SGD, each with a
    few seeds, as Prefect flow runs on one local Dask cluster; a table here and a page
    of curves. Prefect's database goes to .prefect in the working folder (or
    $NDCAO_HOME), unless you have set PREFECT_HOME, PREFECT_PROFILE or PREFECT_API_URL.

    [bold]Examples[/bold]
    $ ndcao demo
    $ ndcao demo --seeds 5 --out five_seeds.html
    """
    from flows.demo import run_demo

    folder = default_results() if results is None else results
    run_demo(seeds=seeds, workers=workers, results=folder, report=report, again=again)


def _train_here(
    config: RunConfig, results: Path, *, again: bool, quiet: bool
) -> dict[str, Any]:
    from pipeline.runs import summary
    from pipeline.train import train as train_run

    title = f"{config.algorithm.kind} {config.mode} s{config.seed}"
    with (
        progress_display(title, quiet=quiet) as progress,
        stop_on_signals(note) as stop,
    ):
        dataset = train_run(
            config, results=results, progress=progress, again=again, stop=stop.event
        )
    return summary(dataset)


def _train_as_flow(
    config: RunConfig, results: Path, *, again: bool, quiet: bool
) -> dict[str, Any]:
    """Run the Prefect flow in this process, with the display of an ordinary run."""
    from flows.train import run_train_flow

    title = f"{config.algorithm.kind} {config.mode} s{config.seed} (flow)"
    with progress_display(title, quiet=quiet) as progress:
        return run_train_flow(
            config, str(results), again=again, listener=progress, say=note
        )


def _finish(line: dict[str, Any], *, as_json: bool) -> None:
    """Print the result; exit 130 after an interrupted run, 1 after a diverged one."""
    if as_json:
        print_json(line)
    else:
        out.print(make_fields(without_warnings(line)))
    if line.get("status") == "exists":
        note("this run exists already; train it anew with --again")
    if diverged(line):
        print_error(
            f"run {line['run_id']} {line['stop_reason']}. "
            "Try a smaller step size or another seed."
        )
        raise typer.Exit(EXIT_FAILED)
    if line.get("status") == "interrupted":
        note(f"stopped; go on with: ndcao resume {line['run_id']}")
        raise typer.Exit(EXIT_INTERRUPTED)
