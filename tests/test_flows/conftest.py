"""Fixtures of the flows' tests: servers of Prefect, stand-ins for slow modules."""

import atexit
import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import types
import urllib.error
import urllib.request

import pytest

import flows  # noqa: F401  (sets Prefect's defaults before anything imports it)

if "PREFECT_HOME" not in os.environ:  # read at import, so too early for a fixture
    _place = tempfile.TemporaryDirectory(prefix="ndcao-prefect-")
    atexit.register(_place.cleanup)
    os.environ["PREFECT_HOME"] = _place.name

LINE = {
    "run_id": "nd-cao-sync-digits-s0-0123456789",
    "store": "results/default/nd-cao-sync-digits-s0-0123456789.zarr",
    "status": "complete",
    "stop_reason": "budget",
    "test_accuracy": 0.5,
    "train_loss": 1.25,
    "n_loss_evals": 10,
    "n_samples": 1000,
    "wall_time_s": 0.5,
    "params_sha256": "ab" * 32,
}


@pytest.fixture
def line():
    """A run's summary line."""
    return dict(LINE)


@pytest.fixture
def stub(monkeypatch):
    """Replace a module that a command imports lazily by one with the given names."""

    def install(name, **attributes):
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty NDCAO_HOME that is also the working folder."""
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


LOOK = """
import json, socket, sys
answers = []
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), timeout=2).close()
        answers.append([host, port])
    except OSError:
        pass
print(json.dumps(answers))
"""


@pytest.fixture(scope="session")
def elsewhere():
    """Which of some ports answer to another network namespace, on a wire to ours.

    None where namespaces are not permitted (they need root and iproute2).
    """
    name, ours, theirs = f"ndcao{os.getpid()}", f"nd{os.getpid()}a", f"nd{os.getpid()}b"
    # Of a range that is kept for tests of networks; sessions side by side take others.
    wire = ipaddress.ip_address("198.18.0.0") + os.getpid() % 2**15 * 4
    host, other = f"{wire + 1}", f"{wire + 2}"

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)

    def look(ports):
        wanted = json.dumps([[host, port] for port in ports])
        done = subprocess.run(
            ["ip", "netns", "exec", name, sys.executable, "-c", LOOK, wanted],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return {port for _, port in json.loads(done.stdout)}

    with contextlib.ExitStack() as stack:
        try:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)  # its wire goes with it
            ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
            ip("link", "set", theirs, "netns", name)
            ip("addr", "add", f"{host}/30", "dev", ours)
            ip("link", "set", ours, "up")
            ip("-n", name, "addr", "add", f"{other}/30", "dev", theirs)
            ip("-n", name, "link", "set", theirs, "up")
        except (OSError, subprocess.CalledProcessError):
            yield None
            return
        yield look


@pytest.fixture(scope="session")
def out_of_reach(hidden, elsewhere):
    """Check that nothing of a process's tree answers to another machine."""

    def check(pid):
        ports = {port for _, port in hidden(pid)}
        if elsewhere is None:
            return
        with socket.create_server(("0.0.0.0", 0)) as open_to_all:
            seen = open_to_all.getsockname()[1]
            assert elsewhere([*ports, seen]) == {seen}

    return check


@pytest.fixture(scope="session")
def temporary_api():
    """Prefect's own temporary server with an empty database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def server_url(tmp_path_factory):
    """A real ``prefect server start`` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    place = tmp_path_factory.mktemp("prefect")
    environment = {**os.environ, "PREFECT_HOME": str(place)}
    environment.pop("PREFECT_API_URL", None)
    words = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *words],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_healthy(f"{url}/health", process, place / "server.log")
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_healthy(address, process, log, limit_s=120.0):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(f"no server after {limit_s} s:\n{log.read_text()}")
