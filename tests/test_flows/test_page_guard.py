"""Other people's pages: by another name of this machine, or of another origin."""

import asyncio

import pytest

from flows.page_guard import PageGuard, own_origins, refusal

OURS = own_origins(4200)
HERE = ("host", "127.0.0.1:4200")
PAGE = ("sec-fetch-site", "cross-site")
LINK = (PAGE, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"))
FRAME = (PAGE, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe"))


def encoded(*headers):
    return [(name.encode(), value.encode()) for name, value in headers]


def why(*headers, method="GET"):
    return refusal(encoded(*headers), method, OURS)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:4200", "localhost:4200", "LOCALHOST", "[::1]:4200"]
)
def test_guard__programs_of_this_machine_pass(host):
    assert why(("host", host), method="POST") is None


@pytest.mark.parametrize(
    "headers",
    [
        (HERE, ("origin", "http://127.0.0.1:4200")),
        (HERE, ("origin", "http://localhost:4200"), PAGE),
        (("host", "localhost:9999"), ("origin", "http://localhost:9999")),  # a tunnel
        (HERE, ("sec-fetch-site", "same-origin")),
        (HERE, ("sec-fetch-site", "none")),  # typed by the user
        (HERE, *LINK),
    ],
)
def test_guard__its_own_pages_and_links_to_it_pass(headers):
    assert why(*headers) is None


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example:4200",
        "127.0.0.1.rebound.example",
        "127.0.0.1@rebound.example",
        "user@127.0.0.1:4200",
        "127.0.0.1/rebound.example",
        "192.168.0.7:4200",
        "[::1",
        "",
    ],
)
def test_guard__another_name_of_this_machine_is_refused(host):
    said = why(("host", host))
    assert said is not None
    assert f"`Host` must be 127.0.0.1 or localhost; got {host or 'nothing'!r}" in (
        said.replace("''", "'nothing'")
    )


def test_guard__no_name_and_two_names_are_refused():
    assert "got 'nothing'" in why()
    assert why(HERE, ("host", "rebound.example")) is not None


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost:8888",  # another server of this machine, as of a notebook
        "https://127.0.0.1:4200",
        "http://127.0.0.1:4200.evil.example",
    ],
)
def test_guard__a_page_of_another_origin_is_refused(origin):
    assert f"`Origin` must be this server's own; got {origin!r}" in why(
        HERE, ("origin", origin)
    )
    assert why(HERE, ("origin", OURS[0]), ("origin", origin)) is not None


def test_guard__it_is_not_shown_or_read_inside_another_page():
    assert "Sec-Fetch-Site" in why(HERE, *FRAME)
    assert why(HERE, PAGE, ("sec-fetch-mode", "no-cors")) is not None
    assert why(HERE, ("sec-fetch-site", "same-site")) is not None
    assert why(HERE, *LINK, method="POST") is not None


def test_guard__a_long_header_is_told_in_short():
    assert len(why(("host", "x" * 10_000))) < 400


def asked(scope):
    """What the guarded application was given, and what was sent."""
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    async def receive():
        raise AssertionError("nothing of a refused request is read")

    async def send(message):
        sent.append(message)

    asyncio.run(PageGuard(app, 4200)(scope, receive, send))
    return seen, sent


def test_guard__answers_403_and_the_application_sees_nothing():
    headers = encoded(HERE, ("origin", "http://evil.example"))
    seen, sent = asked({"type": "http", "method": "POST", "headers": headers})
    assert seen == []
    assert sent[0]["status"] == 403
    assert b"Origin" in sent[1]["body"]


def test_guard__closes_a_websocket_before_it_is_open():
    headers = encoded(HERE, ("origin", "http://evil.example"))
    seen, sent = asked({"type": "websocket", "headers": headers})
    assert seen == []
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_guard__passes_on_what_is_no_request():
    assert asked({"type": "lifespan"}) == (["lifespan"], [])
    assert asked({"type": "websocket", "headers": encoded(HERE)})[0] == ["websocket"]
