"""Where things are kept by default, and the settings Prefect starts with.

Prefect reads its settings when it is imported, so ``flows/__init__.py`` calls
:func:`apply_prefect_defaults` before any flow module imports it. Nothing here overrides
what the user has set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import ClusterConfig

PREFECT_DEFAULTS = {
    # Both halves of Prefect's telemetry off: client events and server heartbeat.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The temporary server needs 10-17 s on an idle machine; the shipped limit is 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def apply_prefect_defaults() -> None:
    """Set each of :data:`PREFECT_DEFAULTS` that the environment does not set yet."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)


def quiet_prefect_console() -> None:
    """Keep Prefect's log lines off the terminal; its API and UI get them all the same.

    For commands, which have a display of their own and print an error as one line.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def home() -> Path:
    """Folder of data stores and results: ``$NDCAO_HOME``, else the current folder."""
    return Path(os.environ.get("NDCAO_HOME") or ".").expanduser()


def default_results() -> Path:
    """Folder of run stores when none is named."""
    return home() / "results"


def shared_cluster() -> ClusterConfig | None:
    """The running Dask cluster that ``$NDCAO_SCHEDULER_FILE`` names; None if unset.

    ``ndcao up`` and the deployments set it, so that all batches share one cluster.
    """
    path = os.environ.get("NDCAO_SCHEDULER_FILE")
    if not path:
        return None
    from pipeline.config import ClusterConfig

    return ClusterConfig(kind="scheduler-file", scheduler_file=path)


def keep_prefect_local() -> None:
    """Keep Prefect's database under ``home()/.prefect`` unless the user chose a place.

    For jobs that must leave nothing outside the working folder (the demo). A user who
    has set ``PREFECT_HOME``, ``PREFECT_PROFILE`` or ``PREFECT_API_URL`` keeps it. Flows
    started by ``ndcao train --flow`` do not call this: they run under the user's own
    Prefect profile, and so against the server or cloud it names.
    """
    chosen = ("PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_API_URL")
    if not any(os.environ.get(name) for name in chosen):
        os.environ["PREFECT_HOME"] = str((home() / ".prefect").resolve())
