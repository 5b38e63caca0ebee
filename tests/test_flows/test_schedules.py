"""What people did on a server outlives the next deployment: a real server's API."""

import json
import urllib.request

import pytest

from flows import deployments as d
from flows.schedules import kept_schedules

TAG = "of-the-test"


@pytest.fixture
def client(server_url):
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: server_url}),
        get_client(sync_client=True) as client,
    ):
        yield client


@pytest.fixture
def apply(client):
    """Deploys what a file says: one schedule, paused; gives the deployment's id."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    flow_id = client.create_flow_from_name("some-flow")
    shipped = DeploymentScheduleCreate(
        schedule=CronSchedule(cron="0 6 * * *"), active=False, slug="daily"
    )

    def once():
        return client.create_deployment(
            flow_id, name="some", tags=[TAG], schedules=[shipped]
        )

    return once


@pytest.fixture
def changed(client, apply):
    """A deployment whose schedule is on, with a further one that somebody added."""
    from prefect.client.schemas.schedules import CronSchedule

    one = apply()
    (shipped,) = client.read_deployment(one).schedules
    client.update_deployment_schedule(one, shipped.id, active=True)
    client.create_deployment_schedules(one, [(CronSchedule(cron="5 5 * * 5"), True)])
    return one


def active(client, deployment):
    found = client.read_deployment(deployment).schedules
    return {one.slug or one.schedule.cron: one.active for one in found}


def test_schedules__stay_as_people_left_them(client, apply, changed):
    with kept_schedules(client, TAG):
        apply()
        assert active(client, changed) == {"daily": False}  # the server's own way
    assert active(client, changed) == {"daily": True, "5 5 * * 5": True}


def test_schedules__come_back_when_deploying_fails_half_way(client, apply, changed):
    def refused():
        apply()
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"), kept_schedules(client, TAG):
        refused()
    assert active(client, changed) == {"daily": True, "5 5 * * 5": True}


def automation(server_url):
    request = urllib.request.Request(
        f"{server_url}/automations/filter",
        data=b"{}",
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (found,) = [a for a in json.load(answer) if a["name"] == d.AUTOMATION]
    return found


def test_automation__is_updated_only_if_it_has_changed(client, server_url, monkeypatch):
    d.mark_silent_runs()
    first = automation(server_url)
    d.mark_silent_runs()
    # By this id the server remembers which runs it listens for.
    assert automation(server_url)["trigger"]["id"] == first["trigger"]["id"]

    client.pause_automation(first["id"])
    monkeypatch.setattr(d, "SILENT_S", 120)
    d.mark_silent_runs()

    now = automation(server_url)
    assert (now["id"], now["trigger"]["within"]) == (first["id"], 120.0)
    assert now["enabled"] is False


def test_deploy__makes_the_home_that_flow_runs_change_to(tmp_path, monkeypatch):
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path / "new" / "home"))
    assert d.deployment_environment()["NDCAO_HOME"] == str(tmp_path / "new" / "home")
    assert (tmp_path / "new" / "home").is_dir()
