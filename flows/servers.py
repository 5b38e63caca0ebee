"""Prefect servers of our own: ports, answers, and a temporary one for a command."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from functools import cache

from flows.prefect_server import HOST
from flows.proxies import is_ours, leave_out_socks
from flows.tied import command

POLL_S = 0.1
ANSWER_S = 2.0
END_S = 5.0  # between asking the temporary server to end and killing it
LAST_CHARACTERS = 2000  # of what a server said that did not start

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ensure_api() -> None:
    """Let this process's flows have a Prefect server: the configured one, or our own.

    Prefect would start a temporary one by itself, which any web page may use and which
    outlives a command that is killed. Ours lives as long as this process.

    Raises
    ------
    RuntimeError — if the server does not start in the time that Prefect's setting
        ``PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS`` allows.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url or is_ours(str(settings.api.url)):
        leave_out_socks()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    limit_s = float(settings.server.ephemeral.startup_timeout_seconds)
    environment = settings.to_environment_variables(exclude_unset=True)
    _use(_temporary(limit_s, tuple(environment.items())))


@cache
def _temporary(limit_s: float, environment: tuple[tuple[str, str], ...]) -> str:
    """Start the server of this process; returns the address of its API."""
    port = free_port()
    words = ("--port", str(port), "--temporary")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command("flows.prefect_server", *words),
            env={**os.environ, **dict(environment)},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for the run's checkpoint
        )
        atexit.register(_end, process)  # after Prefect's own threads have said the last
        url = f"http://{HOST}:{port}/api"
        deadline = time.monotonic() + limit_s
        while not answers(f"{url}/health"):
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                what = f"ended with {code}" if code is not None else "no answer"
                log.seek(0)
                said = log.read().decode("utf-8", "replace").strip()
                raise RuntimeError(
                    f"Prefect's temporary server must start within {limit_s:g} s; got "
                    f"{what}. Try again, or start `ndcao up` and set PREFECT_API_URL. "
                    f"{said[-LAST_CHARACTERS:]}".rstrip()
                )
            time.sleep(POLL_S)
    return url


def _use(url: str) -> None:
    """Make ``url`` Prefect's API in all threads of this process, not in its children's.

    These may be jobs or commands of the user's own.
    """
    from prefect.context import refresh_global_settings_context

    before = os.environ.get("PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = url
    try:
        refresh_global_settings_context()
    finally:
        if before is None:
            del os.environ["PREFECT_API_URL"]
        else:
            os.environ["PREFECT_API_URL"] = before


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)
    assert process.stdin is not None
    process.stdin.close()


def answers(url: str) -> bool:
    """Whether a server of this machine answers with 200, asked without a proxy."""
    try:
        with _direct.open(url, timeout=ANSWER_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """Return a port of the loopback interface on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
