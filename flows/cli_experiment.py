"""``ndcao experiment show``, ``run`` and ``list``: batches as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import options as o
from flows.cli_runs import Json
from flows.console import make_table, note, out, print_error, print_json, say
from flows.environment import default_results
from flows.errors import EXIT_FAILED, EXIT_USAGE

if TYPE_CHECKING:
    from pipeline.config import ClusterConfig
    from pipeline.experiment import Experiment, PlannedRun

COLUMNS = ("run", "algorithm", "mode", "dataset", "model", "seed", "budget")

FileOrName = Annotated[
    str,
    typer.Argument(
        metavar="FILE|NAME",
        help="A YAML file, or the name of a shipped experiment.",
        show_default=False,
    ),
]


def show(experiment: FileOrName, as_json: Json = False) -> None:
    """Check an experiment and list what it would run; nothing is run.

    Everything that is wrong in the file is named by file, line and key.

    [bold]Examples[/bold]
    $ ndcao experiment show smoke
    $ ndcao experiment show my_batch.yaml --json
    """
    batch = read(experiment)
    plan = batch.plan()
    if as_json:
        print_json(describe(batch))
        return
    folders = {run.config.experiment for run in plan.runs}
    rows = [_row(run, folder=len(folders) > 1) for run in plan.runs]
    columns = [*COLUMNS, *(["folder"] if len(folders) > 1 else [])]
    out.print(make_table(columns, rows, f"{batch.name}: {batch.description}"))
    for dropped in plan.dropped:
        names = ", ".join(f"{axis} {label}" for axis, label in dropped.labels.items())
        say(f"left out: {names}: {dropped.reason}")
    seeds = ", ".join(map(str, batch.seeds))
    n_arms = len(plan.runs) // len(batch.seeds)
    say(f"{len(plan.runs)} runs: {n_arms} arms, each with seeds {seeds}")
    note(f"checked only, nothing was run: {batch.source}")


def run(
    experiment: FileOrName,
    workers: o.Workers = None,
    address: o.Address = None,
    scheduler_file: o.SchedulerFile = None,
    results: o.Results = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Tries more for runs that a fault ended.")
    ] = 1,
    report: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The comparison page. Default: NAME.html in the results.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a batch as a Prefect flow, with a child flow run for each of its runs.

    Complete runs are skipped and interrupted ones go on, so the same command again
    finishes what is left. Runs go side by side: a synchronous one on one worker, an
    asynchronous one on as many as it names.

    [bold]Examples[/bold]
    $ ndcao experiment run smoke
    $ ndcao experiment run my_batch.yaml --workers 4 --out my_batch.html
    """
    batch = read(experiment)
    folder = default_results() if results is None else results
    from pipeline.outputs import may_write

    may_write(report or folder / f"{batch.name}.html", "report", "--out")
    from flows.experiment import run_experiment

    answer = run_experiment(
        experiment,
        note,
        results=str(folder),
        report=None if report is None else str(report),
        cluster=_cluster(workers, address, scheduler_file),
        retries=retries,
    )
    if as_json:
        print_json(answer)
    else:
        columns = list(answer["rows"][0])
        rows = [[row[c] for c in columns] for row in answer["rows"]]
        out.print(make_table(columns, rows, answer["experiment"]))
        say(
            f"{answer['n_complete']} of {len(rows)} runs complete, "
            f"{answer['n_skipped']} of them before; page: {answer['report']}"
        )
    if answer["failed"]:
        for name, why in answer["failed"].items():
            print_error(f"{name}: {why}")
        raise typer.Exit(EXIT_FAILED)


def _cluster(
    workers: int | None, address: str | None, scheduler_file: Path | None
) -> ClusterConfig | None:
    """Return the cluster that flags name; None = the flow chooses."""
    from pipeline.config import ClusterConfig

    flags = o.nested_flags(
        workers=workers, address=address, scheduler_file=scheduler_file
    )
    return ClusterConfig(**flags["cluster"]) if flags else None


def list_shipped(as_json: Json = False) -> None:
    """List the experiments that come with ndcao.

    [bold]Examples[/bold]
    $ ndcao experiment list
    """
    from pipeline.experiment import shipped_experiments

    rows = []
    for name, path in shipped_experiments().items():
        batch = read(name)
        row = {"name": name, "runs": len(batch.runs()), "seeds": len(batch.seeds)}
        rows.append({**row, "description": batch.description, "path": str(path)})
    if as_json:
        print_json({"experiments": rows})
        return
    columns = ["name", "runs", "seeds", "description"]
    out.print(make_table(columns, ([row[c] for c in columns] for row in rows)))


def read(experiment: str) -> Experiment:
    """Load an experiment; what is wrong in its file is printed line by line.

    Raises
    ------
    typer.Exit — with the code of bad input, if something is wrong.
    """
    from pipeline.experiment import FileError, load_experiment

    try:
        return load_experiment(experiment)
    except FileError as err:
        for problem in err.problems:
            print_error(" ".join(str(problem).split()))
        raise typer.Exit(EXIT_USAGE) from err


def describe(batch: Experiment) -> dict[str, Any]:
    """Return an experiment and its plan as plain data."""
    plan = batch.plan()
    return {
        "name": batch.name,
        "description": batch.description,
        "source": batch.source,
        "seeds": list(batch.seeds),
        "target": batch.target.model_dump(exclude_none=True) if batch.target else None,
        "n_runs": len(plan.runs),
        "runs": [
            {
                "name": run.name,
                "arm": run.arm,
                "seed": run.seed,
                "labels": dict(run.labels),
                "config": run.config.model_dump(mode="json"),
            }
            for run in plan.runs
        ],
        "dropped": [
            {"labels": dict(dropped.labels), "reason": dropped.reason}
            for dropped in plan.dropped
        ],
    }


def _row(run: PlannedRun, *, folder: bool) -> list[Any]:
    config = run.config
    limits = config.budget.model_dump(exclude_none=True)
    budget = ", ".join(f"{limit} {value:,}" for limit, value in limits.items())
    values = [run.name, config.algorithm.kind, config.mode, config.dataset]
    values += [config.model.name, run.seed, budget]
    return [*values, config.experiment] if folder else values
