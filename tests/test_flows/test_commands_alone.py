"""``ndcao experiment run`` with a Prefect server and a Dask cluster of its own."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LIMIT_S = 150.0
NOBODY = "127.0.0.1:9"  # the discard port: refused
BATCH = """\
name: alone
base: {dataset: digits, model: {hidden: [16]}, checkpoint_every_s: 0.1}
budget: {steps: 1000000}
"""


def until(ready, what):
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = ready()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {LIMIT_S:g} s: {what}")


@contextlib.contextmanager
def started(home, *words):
    """The command in a home of its own, behind proxies that do not answer."""
    proxies = {f"{name}_proxy": f"http://{NOBODY}" for name in ("http", "https")}
    environment = {
        **os.environ,
        **proxies,
        "ALL_PROXY": f"socks://{NOBODY}",
        "NDCAO_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
    }
    for name in ("PREFECT_API_URL", "no_proxy", "NO_PROXY"):
        environment.pop(name, None)
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=log,
        )

    def trains():
        assert process.poll() is None, (home / "log").read_text()
        kept = [*home.glob("results/*/*.checkpoint.npz")]
        return kept or [*home.glob("results/*/*.zarr")]

    try:
        until(trains, "a checkpoint, or a run")
        yield process
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """A batch while it trains."""
    home = tmp_path_factory.mktemp("alone")
    (home / "batch.yaml").write_text(BATCH)
    with started(home, "experiment", "run", "batch.yaml") as process:
        yield process


def api(process):
    """Address of its Prefect server."""
    for child in psutil.Process(process.pid).children():
        words = child.cmdline()
        if "flows.prefect_server" in words:
            return f"http://127.0.0.1:{words[words.index('--port') + 1]}/api"
    raise AssertionError("no server of Prefect's")


def status(url, **headers):
    """Status of a POST, and of what it may do, as any page can send it."""
    ask = urllib.request.Request(url, data=json.dumps({}).encode(), method="POST")
    ask.add_header("Content-Type", "application/json")
    for name, value in headers.items():
        ask.add_header(name, value)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(ask, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as err:
        with err:
            return err.code


def test_batch__behind_proxies_it_reaches_its_own_servers(batch):
    assert batch.poll() is None


def test_batch__nothing_of_it_answers_to_another_machine(batch, out_of_reach):
    out_of_reach(batch.pid)


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--seeds", "1"],
        ["train", "-b", "steps=1000000", "--set", "checkpoint_every_s=0.1"],
    ],
)
def test_commands__answer_to_no_other_machine(words, tmp_path, out_of_reach):
    with started(tmp_path, *words) as process:
        out_of_reach(process.pid)


def test_batch__a_page_of_another_origin_may_do_nothing(batch):
    runs = f"{api(batch)}/flow_runs/filter"
    assert status(runs) == 200
    assert status(runs, Origin="http://evil.example") == 403
    assert status(runs, Host="evil.example") == 403


def test_batch__leaves_no_process_when_it_is_killed(batch):
    processes = psutil.Process(batch.pid).children(recursive=True)
    assert len(processes) >= 3  # Prefect's server, Dask's workers

    batch.kill()

    batch.wait(30)
    left = psutil.wait_procs(processes, timeout=60)[1]
    assert not left
