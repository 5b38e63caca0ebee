"""Fixtures of the flows' tests: servers of Prefect, stand-ins for slow modules."""

import atexit
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
