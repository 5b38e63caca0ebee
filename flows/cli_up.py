"""``ndcao up`` and ``ndcao deploy``: experiments that run by themselves."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows import proxies
from flows.cli_runs import Json
from flows.console import make_table, note, out, print_json, say

MAX_PORT = 65535


def up(
    port: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_PORT, help="Of the Prefect server; 0: any free one."
        ),
    ] = 4200,
    dashboard_port: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_PORT, help="Of the Dask dashboard; 0: any free one."
        ),
    ] = 8787,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Dask workers. Default: one a core.", show_default=False
        ),
    ] = None,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="One Dask worker for each GPU instead.")
    ] = False,
    no_deploy: Annotated[
        bool, typer.Option("--no-deploy", help="Leave the deployments as they are.")
    ] = False,
) -> None:
    """Start all that deployments need, in this terminal, until Ctrl-C.

    A Prefect server (unless PREFECT_API_URL names one), the deployments and a worker
    that runs them, and a Dask cluster that batches share. Data and results are below
    the current folder, or $NDCAO_HOME. What dies is started again. Ctrl-C ends
    everything; runs that train leave checkpoints.

    [bold]Examples[/bold]
    $ ndcao up
    $ ndcao up --workers 8
    $ NDCAO_HOME=/srv/ndcao ndcao up --port 4300
    """
    from flows.up import up as everything
    from flows.up_parts import default_workers

    with everything(
        port=port,
        dask_port=dashboard_port,
        workers=workers or default_workers(),
        gpus=gpus,
        with_deployments=not no_deploy,
        say=note,
    ) as (addresses, supervisor, stop):
        rows = [
            ("Prefect UI", addresses.ui_url),
            ("Dask dashboard", addresses.dashboard),
            ("Data and results", addresses.home),
            ("Logs", addresses.logs),
        ]
        for name, value in rows:
            say(f"{name:<17} {value}")
        say("\nIn another terminal:")
        say(f"  export PREFECT_API_URL={addresses.api_url}")
        if proxies.found():
            say(f"  export NO_PROXY={os.environ['NO_PROXY']}")
        say("  prefect deployment run experiment/smoke")
        say("\nCtrl-C ends everything.")
        supervisor.watch(stop)


def deploy(as_json: Json = False) -> None:
    """Apply ndcao's deployments to the Prefect server; safe to repeat.

    The server is the one that PREFECT_API_URL (or your Prefect profile) names, or that
    of an `ndcao up` in this folder. The current folder, or $NDCAO_HOME, becomes the
    place of data and results of every deployed run. Schedules are there but paused.

    [bold]Examples[/bold]
    $ ndcao deploy
    $ prefect deployment run experiment/smoke
    $ prefect deployment schedule ls experiment/smoke
    """
    from flows.deployments import api_url, deployment_environment
    from flows.deployments import deploy as apply

    url = api_url()
    environment = deployment_environment()
    rows = apply(url, environment)
    if as_json:
        print_json({"api_url": url, **environment, "deployments": rows})
        return
    columns = list(rows[0])
    out.print(make_table(columns, ([row[c] for c in columns] for row in rows)))
    say(f"applied to {url}; data and results: {environment['NDCAO_HOME']}")
    if not environment["NDCAO_SCHEDULER_FILE"]:
        say("no shared Dask cluster: every flow run starts its own workers")
