"""``ndcao runs``, ``evaluate``, ``replay``, ``export``: what to do with kept runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import (
    make_fields,
    note,
    out,
    print_error,
    print_json,
    say,
    without_warnings,
)
from flows.environment import default_results
from flows.errors import EXIT_FAILED

Run = Annotated[
    str,
    typer.Argument(
        help="Run id (or its start), or the path of its store.", show_default=False
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(
        help="Folder of run stores. Default: results under $NDCAO_HOME or here.",
        show_default=False,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the model and loss that the run names (package.module:name). Without "
        "it that is done only for code that you have trained with yourself, unchanged. "
        "Whoever made the run decides what is run: ask where it comes from.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line on stdout.")]


def runs(results: Results = None, as_json: Json = False) -> None:
    """List the kept runs, complete and interrupted.

    [bold]Examples[/bold]
    $ ndcao runs
    $ ndcao runs --results /data/results --json
    """
    from pipeline.runs import list_runs

    folder = default_results() if results is None else results
    rows = [dataclasses.asdict(info) for info in list_runs(folder)]
    if as_json:
        print_json({"results": str(folder), "runs": rows})
        return
    if not rows:
        note(f"no runs in {folder}; start one with: ndcao train")
        return
    from flows.tables import run_table

    out.print(run_table(rows))


def evaluate(
    run: Run,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Another data set or store with the same classes, in any order; "
            "default: the very data that the run was trained on.",
            show_default=False,
        ),
    ] = None,
    results: Results = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Score a run's trained network on a whole test set.

    On the run's own data this reproduces the recorded test accuracy exactly, and says
    so on stderr (and in "warnings" of --json) if it does not.

    [bold]Examples[/bold]
    $ ndcao evaluate nd-cao-sync-mnist-s0-1a2b3c
    $ ndcao evaluate nd-cao-sync-mnist-s0-1a2b3c --dataset data/other.zarr
    """
    from pipeline.runs import evaluate_run

    folder = default_results() if results is None else results
    _print_fields(evaluate_run(run, dataset, folder, trust=trust), as_json=as_json)


def replay(
    run: Run, results: Results = None, trust: Trust = False, as_json: Json = False
) -> None:
    """Recompute a run from its record alone and compare the parameters bit for bit.

    Exit code 1 when they differ.

    [bold]Examples[/bold]
    $ ndcao replay nd-cao-async-mnist-s0-1a2b3c
    """
    from pipeline.replay import replay as replay_run

    folder = default_results() if results is None else results
    line = replay_run(run, results=folder, trust=trust)
    _print_fields(line, as_json=as_json)
    if not line["matches"]:
        print_error(
            "the replayed parameters must equal the stored ones; they differ. "
            "Compare the versions and hardware of the run with `ndcao doctor`."
        )
        raise typer.Exit(EXIT_FAILED)


def export(
    run: Run,
    path: Annotated[
        Path, typer.Argument(help="The .safetensors file to write.", show_default=False)
    ],
    results: Results = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a run's trained network to a .safetensors file.

    Read it back with pipeline.runs.load_model, train --init, or any safetensors reader.

    [bold]Examples[/bold]
    $ ndcao export nd-cao-sync-mnist-s0-1a2b3c model.safetensors
    """
    from pipeline.runs import export_run

    folder = default_results() if results is None else results
    written = export_run(run, path, folder, trust=trust)
    if as_json:
        print_json({"path": str(written), "bytes": written.stat().st_size})
    else:
        say(f"{written}  ({written.stat().st_size:,} bytes)")


def _print_fields(fields: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        out.print(make_fields(without_warnings(fields)))
