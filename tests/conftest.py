"""Fixtures of the whole suite, and a home of its own for everything tests write."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DASK = str(Path(sys.executable).parent / "dask")
DASK_START_S = 90.0
TLS_FLAGS = {"--tls-ca-file": "ca_file", "--tls-cert": "cert", "--tls-key": "key"}

_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    # Before any test module imports Prefect: nothing is sent anywhere, and neither the
    # user's Prefect database nor ./data and ./results are touched; subprocesses too.
    home = tempfile.TemporaryDirectory(prefix="ndcao-", ignore_cleanup_errors=True)
    config.stash[_home] = home
    os.environ["NDCAO_HOME"] = str(Path(home.name) / "ndcao")
    os.environ["XDG_STATE_HOME"] = str(Path(home.name) / "state")
    os.environ["PREFECT_HOME"] = str(Path(home.name) / "prefect")
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_home].cleanup()


@pytest.fixture
def rng() -> np.random.Generator:
    """Return the one source of randomness of a test: the same stream in every run."""
    return np.random.default_rng(20230718)


@pytest.fixture(scope="session")
def shared_datasets() -> Path:
    """Return the folder with MNIST, Fashion-MNIST and CIFAR-10, where there is one."""
    folder = Path(__file__).parents[1].parent / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder}")
    return folder


@pytest.fixture(scope="session")
def listening():
    """Addresses (host, port) on which a process, or one below it, listens."""

    def look(pid: int | None = None) -> set[tuple[str, int]]:
        root = psutil.Process(pid)
        found = set()
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {
                    (one.laddr.ip, one.laddr.port)
                    for one in process.net_connections("inet")
                    if one.status == psutil.CONN_LISTEN
                }
        return found

    return look


@pytest.fixture(scope="session")
def hidden(listening):
    """Check that nothing of a process's tree can be reached from another machine."""

    def check(
        pid: int | None = None, besides: Iterable[tuple[str, int]] = ()
    ) -> set[tuple[str, int]]:
        found = listening(pid).difference(besides)
        assert found
        assert not {
            one for one in found if not ipaddress.ip_address(one[0]).is_loopback
        }
        return found

    return check


class Processes:
    """A scheduler and workers of one folder, started as a user starts them."""

    def __init__(
        self, folder: Path, tls: dict[str, str] | None = None, **environment: str
    ) -> None:
        self.folder, self.options = folder, []
        for flag, name in TLS_FLAGS.items() if tls else ():
            self.options += ["--protocol", "tls"] if not self.options else []
            self.options += [flag, tls[name]]
        self.file = folder / "scheduler.json"
        self.environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("COV", "DASK_"))
        }
        self.environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", **environment}
        self._all: list[subprocess.Popen[bytes]] = []
        self.start("scheduler", "--port", "0")
        deadline = time.monotonic() + DASK_START_S
        while not self.file.exists() or not self.file.read_text():
            assert self._all[0].poll() is None, self.log
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @property
    def address(self) -> str:
        return json.loads(self.file.read_text())["address"]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, what: str, *options: str) -> None:
        both = ["--scheduler-file", str(self.file), "--host", "127.0.0.1"]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [DASK, what, *both, "--no-dashboard", *self.options, *options],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        self._all.append(process)

    def worker(self, name: str, *options: str) -> None:
        self.start("worker", "--nthreads", "1", "--name", name, *options)

    def close(self) -> None:
        for process in reversed(self._all):
            process.send_signal(signal.SIGINT)
        for process in self._all:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


@pytest.fixture
def dask_processes(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(tls: dict[str, str] | None = None, **environment: str) -> Processes:
            folder = tmp_path / "dask"
            folder.mkdir()
            found = Processes(folder, tls, **environment)
            stack.callback(found.close)
            return found

        yield start


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """An authority, and one certificate of it for everyone: the keys of cluster.tls."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def sign(subject, public, issuer, key, *, authority: bool) -> bytes:
        alternative = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        built = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return built.public_bytes(serialization.Encoding.PEM)

    ca, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    private = own.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    contents = {
        "ca_file": sign("test-ca", ca.public_key(), "test-ca", ca, authority=True),
        "cert": sign("node", own.public_key(), "test-ca", ca, authority=False),
        "key": private,
    }
    for part, content in contents.items():
        (folder / f"{part}.pem").write_bytes(content)
    return {part: str(folder / f"{part}.pem") for part in contents}
