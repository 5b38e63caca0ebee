"""Keeps other people's web pages away from an HTTP server of this machine.

A browser sends requests to 127.0.0.1 for any page that is open in it, and a page may
give its own name this address (DNS rebinding). So who asks is seen in what the browser
says: by which name the server was called, and from which origin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

OUR_NAMES = ("127.0.0.1", "localhost", "::1")
NAMES_SHOWN = "127.0.0.1 or localhost"
SHOWN = 100  # characters of a refused value

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def own_origins(port: int) -> tuple[str, ...]:
    """Origins of the pages that a server on ``port`` serves itself."""
    return (f"http://127.0.0.1:{port}", f"http://localhost:{port}")


class PageGuard:
    """An ASGI application that passes on what is no other page's request.

    Parameters
    ----------
    app : the application behind it.
    port : that the server listens on.
    """

    def __init__(self, app: App, port: int) -> None:
        self._app, self._origins = app, own_origins(port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or close a websocket unopened, where :func:`refusal` says why."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        method = str(scope.get("method", "GET"))
        why = refusal(scope["headers"], method, self._origins)
        if why is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
        else:
            await _answer(why, send)


def refusal(
    headers: Iterable[tuple[bytes, bytes]], method: str, origins: Iterable[str]
) -> str | None:
    """Why a request is not for this server, or not from its own pages; None = it is.

    Programs that are no browsers send no ``Origin``. A browser leaves it out of simple
    reads, and says then in ``Sec-Fetch-Site`` where they come from: to follow a link
    to this server is allowed, to show it inside another page is not.

    Parameters
    ----------
    headers : names in lower case and values, as ASGI has them.
    origins : of the server's own pages, beside that of the name it was called by.
    """
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    hosts = found.get("host", [])
    if len(hosts) != 1 or _name(hosts[0]) not in OUR_NAMES:
        return _sentence("Host", NAMES_SHOWN, hosts)
    ours = {f"http://{hosts[0].lower()}", *origins}
    asked = found.get("origin", [])
    if any(origin.lower() not in ours for origin in asked):
        return _sentence("Origin", "this server's own", asked)
    site = found.get("sec-fetch-site", ["none"])
    if asked or site in (["none"], ["same-origin"]):
        return None
    goal = (found.get("sec-fetch-mode"), found.get("sec-fetch-dest"), method)
    if goal == (["navigate"], ["document"], "GET"):
        return None
    return _sentence("Sec-Fetch-Site", "same-origin", site)


def _name(host: str) -> str | None:
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname if parts.netloc == host and not parts.username else None
    except ValueError:
        return None


def _sentence(header: str, rule: str, values: list[str]) -> str:
    got = ", ".join(values)[:SHOWN] or "nothing"
    return (
        f"`{header}` must be {rule}; got {got!r}. This server runs code, so other "
        "pages may not use it: open it by its own address.\n"
    )


async def _answer(text: str, send: Send) -> None:
    body = text.encode("utf-8")
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),  # the request's own body is left unread
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
