"""Proxies of the environment: servers of this machine are reached without one."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from flows.page_guard import OUR_NAMES

VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
EXCEPTIONS = ("no_proxy", "NO_PROXY")


def found() -> dict[str, str]:
    """Proxies of the environment: variable, as it is spelt there → value."""
    names = [spelt for name in VARIABLES for spelt in (name, name.upper())]
    return {name: value for name in names if (value := os.environ.get(name))}


def reach_loopback_directly() -> None:
    """Except this machine's own addresses, for this process and those it starts.

    Without proxies nothing is set: on macOS and Windows these variables would put out
    the system's settings.
    """
    if not found():
        return
    given = {name: os.environ.get(name, "") for name in EXCEPTIONS}
    either = given["no_proxy"] or given["NO_PROXY"]
    for name, own in given.items():
        hosts = [host.strip() for host in (own or either).split(",") if host.strip()]
        missing = [host for host in OUR_NAMES if host not in hosts]
        os.environ[name] = ",".join(hosts if "*" in hosts else [*hosts, *missing])


def is_ours(url: str) -> bool:
    """Whether an address is one of this machine's loopback interface."""
    return urlsplit(url).hostname in OUR_NAMES


def leave_out_socks() -> None:
    """Take SOCKS proxies out of the environment if Prefect's client cannot use them.

    It refuses to start because of them even where it would not use them. Call this only
    before talking to a server of this machine.
    """
    socks = [n for n, value in found().items() if value.lower().startswith("socks")]
    if not socks:
        return
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError):  # no socksio, or a scheme that it does not know
        for name in socks:
            del os.environ[name]


def described() -> str:
    """Say which proxies there are; names and passwords in them are left out."""
    return ", ".join(f"{name}={_bare(value)}" for name, value in found().items())


def _bare(value: str) -> str:
    scheme, separator, rest = value.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]
