"""``ndcao compare``, ``algorithms`` and ``doctor``: pages and tables for people."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_runs import Json, Results
from flows.console import make_table, note, out, print_error, print_json
from flows.environment import default_results
from flows.errors import EXIT_FAILED
from flows.parsing import parse_target


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Two or more runs: ids or stores.", show_default=False),
    ],
    report: Annotated[
        Path, typer.Option("--out", help="The page to write; opens with no network.")
    ] = Path("report.html"),
    export: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write the runs as .nc, .zarr, .csv or .parquet too; may be repeated.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write every figure of the page to, as PNG and SVG.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="What the time is taken to: val_accuracy=0.9, val_loss or train_loss.",
            show_default=False,
        ),
    ] = None,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Compare runs: a table here, and one page with figures, curves and verdicts.

    Curves are drawn against updates, samples, loss values, bytes and wall time:
    synchronous and asynchronous runs look different on each.

    [bold]Examples[/bold]
    $ ndcao compare RUN RUN
    $ ndcao compare results/default/*.zarr --out report.html
    $ ndcao compare RUN RUN --export runs.nc --export runs.csv
    $ ndcao compare RUN RUN --target val_accuracy=0.9 --figures pictures
    """
    from flows.outcome import stores_of
    from pipeline.compare import combine_runs, loaded, summary_table
    from pipeline.exports import check_export, write_export
    from pipeline.outputs import check_folder, may_write
    from pipeline.report import write_report
    from pipeline.report_figures import write_figures

    may_write(report, "report", "--out")
    for path in export or ():
        check_export(path)
    if figures is not None:
        check_folder(figures, "--figures")
    aim = None if target is None else parse_target(target)
    folder = default_results() if results is None else results
    combined = loaded(combine_runs(stores_of(runs, folder)))
    table = summary_table(combined)
    command = shlex.join(["ndcao", "compare", *runs, "--out", str(report)])
    command += f" --target {target}" if target else ""
    page = write_report(combined, report, target=aim, command=command)
    pictures = write_figures(combined, figures) if figures else []
    files = [file for path in export or () for file in write_export(combined, path)]
    rows = table.reset_index().to_dict(orient="records")
    if as_json:
        exports = [str(file) for file in files]
        drawn = [str(file) for file in pictures]
        answer = {"report": str(page), "exports": exports, "figures": drawn}
        notes = combined.attrs["kept_apart"]
        print_json(answer | {"runs": rows, "notes": notes})
        return
    from flows.tables import comparison_table

    out.print(comparison_table(rows))
    for text in combined.attrs["kept_apart"]:
        note(text)
    note(f"curves: {page}")
    for file in files:
        note(f"export: {file}")
    if pictures:
        note(f"figures: {len(pictures)} files in {figures}")


def algorithms(as_json: Json = False) -> None:
    """List the training algorithms: what they may see, their modes and their paper.

    [bold]Examples[/bold]
    $ ndcao algorithms
    """
    from flows.tables import ALGORITHM_COLUMNS, algorithm_rows

    rows = algorithm_rows()
    if as_json:
        print_json({"algorithms": rows})
        return
    columns = list(ALGORITHM_COLUMNS)
    out.print(make_table(columns, ([row[c] for c in columns] for row in rows)))


def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="Scheduler to reach: tcp://host:8786.", show_default=False),
    ] = None,
    scheduler_file: Annotated[
        Path | None,
        typer.Option(help="Scheduler file to read.", show_default=False),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a server.")
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Check the installation: versions, devices, folders, servers.

    Exit code 1 when something must be mended before ndcao can work.

    [bold]Examples[/bold]
    $ ndcao doctor
    $ ndcao doctor --address tcp://cluster:8786
    """
    from flows.doctor import diagnose

    checks = diagnose(
        address=address,
        scheduler_file=scheduler_file,
        timeout_s=timeout_s,
    )
    failed = [check for check in checks if check.verdict == "fail"]
    if as_json:
        print_json({"ok": not failed, "checks": [check.to_dict() for check in checks]})
    else:
        from flows.tables import check_table

        out.print(check_table(checks))
    if failed:
        names = ", ".join(check.name for check in failed)
        print_error(f"{len(failed)} of {len(checks)} checks failed: {names}.")
        raise typer.Exit(EXIT_FAILED)
