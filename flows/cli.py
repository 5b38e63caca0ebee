"""The ``ndcao`` command: assembles the commands and turns errors into one line.

Only typer and rich are imported here; every command imports what it needs when it runs,
so that help, listings and ``ndcao ingest`` start without torch or Prefect.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flows import (
    cli_cluster,
    cli_compare,
    cli_experiment,
    cli_ingest,
    cli_runs,
    cli_train,
    cli_up,
)
from flows.console import out, print_error, say, stdout_for_json
from flows.environment import quiet_prefect_console
from flows.errors import EXIT_INTERRUPTED, EXIT_USAGE, describe, exit_code

SUMMARY = """\
Train neural networks in blocks from one shared loss, on a Dask cluster.

Every block updates itself from the latest global loss alone: no back-propagation,
synchronously or asynchronously. Every run is kept and can be resumed, replayed,
evaluated, exported and compared with gradient-based baselines.

[bold]From data to a comparison[/bold]
$ ndcao ingest digits
$ ndcao train --dataset digits --mode sync --seed 1
$ ndcao train --dataset digits --mode async --seed 1
$ ndcao runs
$ ndcao compare RUN RUN --out report.html
"""

DATA, TRAIN, RESULTS, HELP = "Data", "Training", "Results", "Help"
DEPLOYED = "Deployments"

app = typer.Typer(
    name="ndcao",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with:  ndcao demo    (about two minutes, no network)",
)


def _reflow(text: str) -> str:
    """Join the lines of each paragraph; keep those of examples, which start with $."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        p if "\n$ " in p else " ".join(p.split("\n")) for p in paragraphs
    )


class Interrupted(Exception):
    """Ctrl-C where nothing could be kept; typer would end without a word."""


def _at_home(name: str, value: Any) -> Any:
    """Return a path, or each of a list, with ``~`` as the user's home.

    A shell leaves it to us in ``--results=~/r``.
    """
    if isinstance(value, Path):
        from pipeline.places import given_path

        return given_path(value, name)
    if isinstance(value, list):
        return [_at_home(name, item) for item in value]
    return value


def _add(
    name: str, panel: str | None, command: Callable[..., None], to: typer.Typer = app
) -> None:
    @functools.wraps(command)
    def guarded(*values: Any, **named: Any) -> None:
        given = {name: _at_home(name, value) for name, value in named.items()}
        try:
            with stdout_for_json(bool(given.get("as_json"))):
                command(*values, **given)
        except KeyboardInterrupt:
            raise Interrupted from None

    text = _reflow(command.__doc__ or "")
    to.command(name, help=text, rich_help_panel=panel)(guarded)


experiments = typer.Typer(rich_markup_mode="rich")


@experiments.callback(invoke_without_command=True)
def experiment(context: typer.Context) -> None:
    """Batches of runs, described in files."""
    if context.invoked_subcommand is None:
        out.print(context.get_help())


clusters = typer.Typer(rich_markup_mode="rich")


@clusters.callback(invoke_without_command=True)
def cluster(context: typer.Context) -> None:
    """Where runs compute."""
    if context.invoked_subcommand is None:
        out.print(context.get_help())


_add("ingest", DATA, cli_ingest.ingest)
_add("train", TRAIN, cli_train.train)
_add("resume", TRAIN, cli_train.resume)
_add("demo", TRAIN, cli_train.demo)
app.add_typer(experiments, name="experiment", rich_help_panel=TRAIN)
_add("show", None, cli_experiment.show, experiments)
_add("run", None, cli_experiment.run, experiments)
_add("list", None, cli_experiment.list_shipped, experiments)
app.add_typer(clusters, name="cluster", rich_help_panel=TRAIN)
_add("show", None, cli_cluster.show, clusters)
_add("runs", RESULTS, cli_runs.runs)
_add("compare", RESULTS, cli_compare.compare)
_add("evaluate", RESULTS, cli_runs.evaluate)
_add("replay", RESULTS, cli_runs.replay)
_add("export", RESULTS, cli_runs.export)
_add("up", DEPLOYED, cli_up.up)
_add("deploy", DEPLOYED, cli_up.deploy)
_add("algorithms", HELP, cli_compare.algorithms)
_add("doctor", HELP, cli_compare.doctor)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        say(f"ndcao {version('ndcao')}")
    except PackageNotFoundError:
        say("ndcao (not installed: running from source)")
    raise typer.Exit


@app.callback(invoke_without_command=True, help=_reflow(SUMMARY))
def root(
    context: typer.Context,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show tracebacks of errors (allowed after a command too)."
        ),
    ] = False,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Print the help when no command is given."""
    if context.invoked_subcommand is None:
        out.print(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed (or diverged, or not matching), 2 bad input, 130 interrupted.
    """
    words = list(arguments)
    limit = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:limit]
    words = [w for i, w in enumerate(words) if w != "--debug" or i >= limit]
    if not debug:
        quiet_prefect_console()
    empty = _empty(words)
    if empty is not None:
        print_error(f"{empty} must not be empty; got ''. Is a variable unset?")
        return EXIT_USAGE
    try:
        code = app(args=words, standalone_mode=False, prog_name="ndcao")
    except typer.TyperException as error:
        return _usage_error(error)
    except (Interrupted, typer.Abort, KeyboardInterrupt):
        print_error("interrupted.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our pipe has gone: nothing is left to tell
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        print_error(describe(error))
        return exit_code(error)
    return code if isinstance(code, int) else 0


def _empty(words: Sequence[str]) -> str | None:
    """Return what was given nothing: an option's name, or "an argument"; else None.

    An empty word is a shell's unset variable, and would stand for the current folder or
    for any run. No hidden layers (``--hidden ""``) are meant.
    """
    for before, word in itertools.pairwise(["", *words]):
        option = word.removesuffix("=")
        if word.startswith("--") and word == f"{option}=" and option != "--hidden":
            return f"`{option}`"
        if word.strip() or before == "--hidden":
            continue
        return f"`{before}`" if before.startswith("-") else "an argument"
    return None


def _usage_error(error: typer.TyperException) -> int:
    """Report a wrong flag or argument, and where its help is."""
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "ndcao")
    message = " ".join(error.format_message().split()).rstrip(".")
    print_error(f"{message[:1].lower()}{message[1:]}. See `{path} --help`.")
    return EXIT_USAGE


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
