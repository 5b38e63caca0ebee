"""A Prefect server that only this machine's own pages and programs can use.

What ``prefect server start`` does, behind a :class:`~flows.page_guard.PageGuard`: the
API runs the commands it is told to run, and Prefect lets pages of any origin tell it.
Started as a process of its own: ``python -m flows.prefect_server --port 4200``.
"""

from __future__ import annotations

import argparse
import os

from flows.page_guard import PageGuard, own_origins

HOST = "127.0.0.1"


def serve(port: int, *, temporary: bool = False) -> None:
    """Serve Prefect's API and pages on the loopback interface, until a signal.

    Parameters
    ----------
    port : to listen on.
    temporary : without pages, schedules and other services, for a few flows.
    """
    own = ",".join(own_origins(port))
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = own
    os.environ["PREFECT_SERVER_UI_API_URL"] = f"http://{HOST}:{port}/api"
    if temporary:
        os.environ["PREFECT_SERVER_UI_ENABLED"] = "false"
    import uvicorn  # after the environment: Prefect reads its settings when imported
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    level = "error" if temporary else settings.logging_level.lower()
    uvicorn.run(
        PageGuard(create_app(final=True, ephemeral=temporary), port),
        host=HOST,
        port=port,
        lifespan="on",
        log_level=level,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=serve.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--temporary", action="store_true")
    words = parser.parse_args()
    serve(words.port, temporary=words.temporary)


if __name__ == "__main__":
    main()
