"""Proxies of the environment do not come between us and our own servers."""

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import urlopen

import httpx
import pytest

from flows import doctor_servers, proxies
from flows.servers import answers

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
NOBODY = "http://127.0.0.1:9"  # the discard port: refused


@pytest.fixture
def bare(monkeypatch):
    """No proxies; returns how to set a variable."""
    for name in NAMES:
        for spelt in (name, name.upper()):
            monkeypatch.setenv(spelt, "")  # put back at the end, whatever comes
            monkeypatch.delenv(spelt)
    return monkeypatch.setenv


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}/"
        found.shutdown()
        thread.join(10)


def test_proxies__without_any_nothing_is_set(bare):
    proxies.reach_loopback_directly()
    assert not any(name in os.environ for name in proxies.EXCEPTIONS)
    assert doctor_servers.check_proxies().verdict == "ok"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_proxies__our_servers_are_reached_without(name, bare, server):
    bare(name, NOBODY)
    assert answers(server)  # even before
    proxies.reach_loopback_directly()
    with urlopen(server, timeout=10) as answer:
        assert answer.status == 200
    assert httpx.get(server, timeout=10).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://elsewhere.invalid/", timeout=10)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "a.org, localhost"}, "a.org,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a.org"}, "a.org,127.0.0.1,localhost,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_proxies__exceptions_of_the_user_stay(before, after, bare):
    bare("http_proxy", NOBODY)
    for name, value in before.items():
        bare(name, value)
    for _ in range(2):
        proxies.reach_loopback_directly()
        assert [os.environ[name] for name in proxies.EXCEPTIONS] == [after, after]


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks", "socks4"])
def test_proxies__socks_that_httpx_cannot_use_do_not_keep_it_from_us(
    scheme, bare, server
):
    bare("ALL_PROXY", f"{scheme}://127.0.0.1:9")
    bare("https_proxy", NOBODY)
    proxies.reach_loopback_directly()
    proxies.leave_out_socks()
    assert httpx.get(server, timeout=10).status_code == 200
    assert os.environ["https_proxy"] == NOBODY


def test_doctor__says_which_proxies_it_sees_and_no_password(bare):
    bare("https_proxy", "http://me:secret@proxy.example:3128")
    bare("ALL_PROXY", "socks://proxy.example:1080")
    check = doctor_servers.check_proxies()
    assert check.verdict == "note"
    assert "https_proxy=http://proxy.example:3128" in check.found
    assert "ALL_PROXY=socks://proxy.example:1080" in check.found
    assert "127.0.0.1" in check.found
    assert "secret" not in check.found


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("http://127.0.0.1:4200/api", True),
        ("http://localhost:4200/api", True),
        ("http://[::1]:4200/api", True),
        ("https://api.prefect.cloud/api", False),
    ],
)
def test_proxies__know_this_machines_own_addresses(url, ours):
    assert proxies.is_ours(url) is ours
