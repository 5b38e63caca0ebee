"""What ``ndcao up`` runs, in a file under the home that other commands read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil

from flows.environment import home
from pipeline.whole_file import write_whole

TOLERANCE_S = 1.0  # of a process's recorded start


def folder() -> Path:
    """Folder of ``up``'s state and logs: ``.ndcao`` under the home."""
    return home().resolve() / ".ndcao"


def state_file() -> Path:
    """The file that says what runs."""
    return folder() / "up.json"


def write(state: dict[str, Any], processes: list[tuple[str, int]]) -> None:
    """Keep what runs: addresses, and each process with the time of its start."""
    known = [
        {"name": name, "pid": pid, "started": _started(pid)} for name, pid in processes
    ]
    me = {"name": "up", "pid": os.getpid(), "started": _started(os.getpid())}
    text = json.dumps({**state, "up": me, "processes": known}, indent=2)
    write_whole(state_file(), text + "\n")


def read() -> dict[str, Any] | None:
    """What was written last; None if nothing, or if it cannot be read."""
    try:
        found = json.loads(state_file().read_text(encoding="utf-8"))
        known = [found["up"], *found["processes"]]
        whole = all(
            isinstance(one["pid"], int)
            and isinstance(one["started"], int | float | None)
            for one in known
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if whole else None


def running() -> dict[str, Any] | None:
    """The state of an ``ndcao up`` that runs in this home and is ready; else None."""
    state = read()
    return state if state and state.get("ready") and alive(state["up"]) else None


def leftovers() -> list[int]:
    """Processes of an ``ndcao up`` that was killed, and that still run, last first."""
    state = read()
    if state is None or alive(state["up"]):
        return []
    return [one["pid"] for one in reversed(state["processes"]) if alive(one)]


def alive(process: dict[str, Any]) -> bool:
    """Whether a recorded process runs: the same one, not another with its number."""
    started = _started(process["pid"])
    if started is None or process["started"] is None:
        return False
    return abs(started - float(process["started"])) < TOLERANCE_S


def _started(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return None
