"""Schedules of deployments: what people did to them outlives the next deployment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept_schedules(client: Any, tag: str) -> Iterator[None]:
    """Keep schedules of the deployments with a tag as people have left them.

    ``prefect deploy`` puts schedules back to what the file says. Afterwards those with
    the same slug are active or paused as before, and those that people have added, and
    that are gone, are there again. So too if the deployment fails half-way.
    """
    before = {d.id: d.schedules for d in tagged(client, tag)}
    try:
        yield
    finally:
        for deployment in tagged(client, tag):
            _put_back(client, deployment, before.get(deployment.id, ()))


def _put_back(client: Any, deployment: Any, before: Sequence[Any]) -> None:
    now = {one.slug: one for one in deployment.schedules if one.slug}
    ids = {one.id for one in deployment.schedules}
    for old in before:
        if old.slug in now:
            if now[old.slug].active != old.active:
                client.update_deployment_schedule(
                    deployment.id, now[old.slug].id, active=old.active
                )
        elif old.id not in ids:
            client.create_deployment_schedules(
                deployment.id,
                [(old.schedule, old.active)],
                max_scheduled_runs=old.max_scheduled_runs,
                parameters=old.parameters,
                slug=old.slug,
            )


def tagged(client: Any, tag: str) -> list[Any]:
    """Deployments that have a tag."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    wanted = DeploymentFilter(tags=DeploymentFilterTags(all_=[tag]))
    found: list[Any] = client.read_deployments(deployment_filter=wanted)
    return found


def describe(one: Any) -> str:
    """A schedule in words: its rule, time zone, and whether it is on."""
    rule = one.schedule
    when = getattr(rule, "cron", None) or getattr(rule, "rrule", None)
    when = when or f"every {rule.interval}"
    zone = getattr(rule, "timezone", None) or ""
    return f"{when} {zone} ({'on' if one.active else 'paused'})".replace("  ", " ")
