"""Deployments: applies ``prefect.yaml`` to a Prefect server, with its automation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.environment import home
from flows.proxies import is_ours, leave_out_socks
from flows.schedules import describe, kept_schedules, tagged
from flows.up_state import running

POOL = "ndcao"
HEARTBEAT_S = 30  # prefect.yaml sets it for the flow runs
SILENT_S = 3 * HEARTBEAT_S  # without a heartbeat before a run counts as crashed
AUTOMATION = "ndcao: a flow run that fell silent has crashed"
APPLY_S = 300.0  # limit for all of prefect.yaml
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
RUN_EVENT = "prefect.flow-run."
RULE = ("description", "trigger", "actions")  # what of an automation is ours to say


def prefect_file() -> Path:
    """Where ``prefect.yaml`` lies: beside the packages, or among a wheel's data.

    Raises
    ------
    FileNotFoundError — if it was not installed.
    """
    root = Path(__file__).resolve().parents[1]
    for folder in (root, Path(sys.prefix) / "share" / "ndcao"):
        if (folder / "prefect.yaml").is_file():
            return folder / "prefect.yaml"
    raise FileNotFoundError(
        f"`prefect.yaml` must be installed with ndcao; got none at {root}. "
        "Install ndcao again."
    )


def api_url() -> str:
    """The Prefect API that deployments go to: the configured one, or ``ndcao up``'s.

    Raises
    ------
    ValueError — if there is neither.
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url:
        return str(url)
    up = running()
    if up is None:
        raise ValueError(
            "`PREFECT_API_URL` must name a Prefect server; got none, and no `ndcao up` "
            f"runs in {home().resolve()}. Start `ndcao up`, or set it."
        )
    return str(up["api_url"])


def deployment_environment() -> dict[str, str]:
    """What ``prefect.yaml`` takes from the environment, resolved now.

    Makes the home if it is not there.
    """
    up = running()
    cluster = os.environ.get("NDCAO_SCHEDULER_FILE") or (up or {}).get("scheduler_file")
    home().mkdir(parents=True, exist_ok=True)  # flow runs change to it
    return {
        "NDCAO_HOME": str(home().resolve()),
        "NDCAO_SCHEDULER_FILE": str(Path(cluster).resolve()) if cluster else "",
    }


def deploy(url: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Apply every deployment and the automation; safe to repeat.

    Schedules that people have switched on, or added, stay so.

    Parameters
    ----------
    url : of the Prefect API.
    environment : values of the variables in ``prefect.yaml``.

    Returns
    -------
    list of dict — ``name`` (flow/deployment), ``schedule``, ``description``.

    Raises
    ------
    RuntimeError — if Prefect refuses; its own words are in the message.
    """
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if is_ours(url):
        leave_out_socks()
    with (
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        _work_pool(client)
        with kept_schedules(client, POOL):
            _apply(url, environment)
        mark_silent_runs()
        return _deployed(client)


def _apply(url: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    try:
        done = subprocess.run(
            [*command, "--prefect-file", str(prefect_file())],
            env={**os.environ, **environment, "PREFECT_API_URL": url},
            cwd=environment["NDCAO_HOME"],
            capture_output=True,
            text=True,
            timeout=APPLY_S,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise RuntimeError(
            f"`prefect deploy` must end within {APPLY_S:g} s; got no answer from "
            f"{url}. Look at the server's log."
        ) from err
    if done.returncode:
        raise RuntimeError(
            f"`prefect deploy` must succeed; it ended with {done.returncode}:\n"
            f"{(done.stdout + done.stderr).strip()[-2000:]}"
        )


def _work_pool(client: Any) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    except ObjectAlreadyExists:
        return


def mark_silent_runs() -> None:
    """Let the server mark flow runs as crashed whose heartbeats stopped.

    Prefect's worker does so for processes that die under it; this is for those that die
    with their worker, or with the machine.
    """
    from datetime import timedelta

    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    heartbeat = RUN_EVENT + "heartbeat"
    rule = Automation(
        name=AUTOMATION,
        description="See docs/operations.md of ndcao.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(RUN_EVENT + end for end in ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            # Of deployments alone: a server on SQLite locks itself out, for up to a
            # minute, when the triggers of many runs are evaluated at once.
            match_related={
                "prefect.resource.role": ["tag"],
                "prefect.resource.id": [f"prefect.tag.{POOL}"],
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_S),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                message=f"no heartbeat for {SILENT_S} s; its process is gone",
                force=False,
            )
        ],
    )
    try:
        known: Any = Automation.read(name=AUTOMATION)
    except ValueError:
        rule.create()
        return
    if all(getattr(known, part) == getattr(rule, part) for part in RULE):
        return  # an update would forget the runs that it listens for
    rule.id, rule.enabled = known.id, known.enabled
    rule.update()


def _deployed(client: Any) -> list[dict[str, Any]]:
    rows = [
        {
            "deployment": f"{client.read_flow(d.flow_id).name}/{d.name}",
            "schedule": "; ".join(map(describe, d.schedules)) or "–",
            "description": d.description or "",
        }
        for d in tagged(client, POOL)
    ]
    return sorted(rows, key=lambda row: row["deployment"])
