"""Prefect flow: raw images into a verified store."""

from __future__ import annotations

from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from flows.artifacts import add_tags, parameter, publish_table, slug
from flows.errors import EXIT_FAILED, exit_code
from flows.stores import ingest_to_dict
from pipeline.places import given_path


def _worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass (a network, a disk), not what the user must correct."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and exit_code(error) == EXIT_FAILED


@task(
    name="ingest",
    task_run_name="ingest-{name}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_worth_retrying,
    cache_policy=NO_CACHE,
)
def ingest_task(
    name: str,
    source: str | None,
    store: str | None,
    limit_train: int | None,
    limit_test: int | None,
    unverified: bool,
    replace: bool,
) -> dict[str, Any]:
    """Write the store; an interrupted attempt leaves none, so a retry starts afresh."""
    return ingest_to_dict(
        name,
        source=None if source is None else given_path(source, "source"),
        store=None if store is None else given_path(store, "store"),
        limit_train=limit_train,
        limit_test=limit_test,
        unverified=unverified,
        replace=replace,
    )


def _run_name() -> str:
    return f"ingest-{slug(str(parameter('name')))}"


@flow(name="ingest", flow_run_name=_run_name)
def ingest_flow(
    name: str = "digits",
    source: str | None = None,
    store: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    unverified: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Read raw images once into a checksummed Zarr store.

    Parameters
    ----------
    name : digits, mnist, fashion-mnist, cifar10, image-folder or npz.
    source : raw files: a folder, an archive or a ``.npz``; None downloads known ones.
    store : store to write; None = ``data/<name>.zarr``.
    limit_train, limit_test : keep the first samples only.
    unverified : accept a re-packed or partial copy of a known data set.
    replace : replace a store that was made from another source.

    Returns
    -------
    dict — the store's path, counts and content hash.
    """
    add_tags("ingest", name)
    info = ingest_task(
        name, source, store, limit_train, limit_test, unverified, replace
    )
    get_run_logger().info("store of %s: %s", name, info.get("path"))
    for sentence in info["notes"]:
        get_run_logger().warning("%s", sentence)
    publish_table(f"store-{name}", [info], f"Store of {name}")
    return info
