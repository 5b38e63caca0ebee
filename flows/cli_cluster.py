"""``ndcao cluster``: what a run's cluster would be, before it is started."""

from __future__ import annotations

import sys

from flows import options as o
from flows.cli_runs import Json
from flows.console import print_json


def show(
    config: o.ConfigFile = None,
    workers: o.Workers = None,
    address: o.Address = None,
    scheduler_file: o.SchedulerFile = None,
    device: o.Device = None,
    overrides: o.Overrides = None,
    as_json: Json = False,
) -> None:
    """Print what a run's `cluster:` section would start; nothing is started.

    For a queueing system the script of one job, for Kubernetes the manifest.

    [bold]Examples[/bold]
    $ ndcao cluster show
    $ ndcao cluster show -c run.yaml
    $ ndcao cluster show -c run.yaml --set cluster.options.walltime=04:00:00
    """
    flags = o.nested_flags(
        workers=workers, address=address, scheduler_file=scheduler_file, device=device
    )
    found = o.build_config(config, overrides, flags)
    from pipeline.cluster_plan import plan

    text = plan(found.cluster, found.device)
    if as_json:
        print_json({"kind": found.cluster.kind, "starts": text})
        return
    sys.stdout.write(text)
