"""``ndcao up``, its deployments, Prefect's pages: real processes in one home."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HERE = "127.0.0.1"
BATCH = """\
name: little
base: {dataset: digits, cluster: {workers: 2}}
grid: {mode: [sync, async]}
budget: {steps: 60}
"""


def until(ready, limit_s, what):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = ready()
        if found:
            return found
        time.sleep(0.25)
    raise AssertionError(f"not within {limit_s} s: {what}")


class Up:
    """A running ``ndcao up`` and the commands that a user types beside it."""

    def __init__(self, home, process, log):
        self.home, self.process, self.log = home, process, log
        self.state = until(self._ready, 180, f"`ndcao up` is ready:\n{log}")
        self.environment = {
            **os.environ,
            "NDCAO_HOME": str(home),
            "PREFECT_API_URL": self.state["api_url"],
        }

    def _ready(self):
        assert self.process.poll() is None, self.log.read_text()
        path = self.home / ".ndcao" / "up.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        return state if state.get("ready") else None

    def pid(self, name):
        state = json.loads((self.home / ".ndcao" / "up.json").read_text())
        return {one["name"]: one["pid"] for one in state["processes"]}[name]

    def prefect(self, *words, limit_s=240):
        return self._call([sys.executable, "-m", "prefect", *words], limit_s)

    def ndcao(self, *words, limit_s=120):
        return self._call([sys.executable, "-m", "flows.cli", *words], limit_s)

    def _call(self, command, limit_s):
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def client(self):
        from prefect import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with (
            temporary_settings({PREFECT_API_URL: self.state["api_url"]}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def schedules(self, name):
        with self.client() as client:
            (one,) = [d for d in client.read_deployments() if d.name == name]
        return one.schedules

    def flow_runs(self, **equal):
        """Flow runs, newest last, whose attributes are as named."""
        from prefect.client.schemas.sorting import FlowRunSort

        with self.client() as client:
            found = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_ASC)
        return [
            run
            for run in found
            if all(getattr(run, name) == value for name, value in equal.items())
        ]


def start(home, *more):
    words = ["--port", "0", "--dashboard-port", "0", "--workers", "2", *more]
    log = home / "up.log"
    environment = {**os.environ, "NDCAO_HOME": str(home)}
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE"):
        environment.pop(name, None)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "up", *words],
            env=environment,
            cwd=home,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return Up(home, process, log)
    except BaseException:
        end(process)
        raise


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    home = tmp_path_factory.mktemp("home") / "mein Büro"
    home.mkdir()
    (home / "little.yaml").write_text(BATCH)
    running = start(home)
    yield running
    end(running.process)


@pytest.fixture(scope="module")
def batch(up):
    """A batch that a deployment ran: the parent flow run, complete."""
    up.prefect(
        *("deployment", "run", "experiment/smoke", "--watch"),
        *("--param", "experiment=little.yaml"),
    )
    (parent,) = up.flow_runs(name="little")
    assert parent.state.name == "Completed", parent.state.message
    return parent


def test_deployment__runs_a_batch_into_the_home_on_the_shared_cluster(up, batch):
    stores = sorted((up.home / "results" / "little").glob("*.zarr"))

    assert len(stores) == 2
    assert (up.home / "results" / "little.html").is_file()
    assert (up.home / "data" / "digits.zarr").is_dir()
    log = (up.home / ".ndcao" / "logs" / "dask-worker.log").read_text()
    assert "Registered to" in log
    flows = (up.home / ".ndcao" / "logs" / "prefect-worker.log").read_text()
    assert "Beginning flow run 'little'" in flows
    assert "Downloading flow code" not in flows  # that would copy the home, data too
    children = [r.name for r in up.flow_runs() if r.parent_task_run_id]
    assert sorted(n for n in children if n != "compare-2-runs") == [
        "async-digits-nd-cao-s0",
        "sync-digits-nd-cao-s0",
    ]


def test_deploy__can_be_repeated_and_lists_what_there_is(up):
    answer = json.loads(up.ndcao("deploy", "--json"))

    names = [row["deployment"] for row in answer["deployments"]]
    assert names == [
        "experiment/baselines",
        "experiment/four-cases",
        "experiment/smoke",
        "experiment/sync-vs-async",
        "ingest/data",
        "train/run",
    ]
    assert answer["NDCAO_HOME"] == str(up.home.resolve())
    assert "paused" in answer["deployments"][2]["schedule"]


def test_deploy__leaves_schedules_as_people_have_left_them(up):
    name = "experiment/baselines"
    up.prefect("deployment", "schedule", "create", name, "--cron", "5 5 * * 5")
    (shipped,) = [s for s in up.schedules("baselines") if s.slug == "weekly"]
    up.prefect("deployment", "schedule", "resume", name, str(shipped.id))

    up.ndcao("deploy")

    found = {s.slug or s.schedule.cron: s.active for s in up.schedules("baselines")}
    assert found == {"weekly": True, "5 5 * * 5": True}
    up.prefect("deployment", "schedule", "clear", name, "-y")


def test_deployment__parameters_are_typed(up):
    with pytest.raises(AssertionError, match="retries"):
        up.prefect("deployment", "run", "experiment/smoke", "-p", "retries=many")


def test_schedule__starts_runs_by_itself(up, batch):
    up.prefect("deployment", "schedule", "create", "ingest/data", "--interval", "15")
    try:
        run = until(
            lambda: [
                r
                for r in up.flow_runs(name="ingest-digits", auto_scheduled=True)
                if r.state.is_completed()
            ],
            120,
            "a scheduled run completes",
        )[0]
    finally:
        up.prefect("deployment", "schedule", "clear", "ingest/data", "-y")
    assert run.deployment_id is not None


@pytest.mark.parametrize("name", ["dask-scheduler", "dask-worker", "prefect-worker"])
def test_up__starts_again_what_is_killed(up, batch, name):
    old = up.pid(name)

    psutil.Process(old).kill()

    until(lambda: up.pid(name) != old, 30, f"{name} is started again")
    from distributed import Client

    with Client(
        scheduler_file=up.state["scheduler_file"], set_as_default=False
    ) as client:
        client.wait_for_workers(2, timeout=60)


@pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium")
def test_pages__show_the_batch_its_runs_and_its_artifacts(up, batch, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    pictures = Path(os.environ.get("NDCAO_PICTURES") or tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(f"{up.state['ui_url']}/runs")
        for name in ("little", "sync-digits-nd-cao-s0", "async-digits-nd-cao-s0"):
            expect(page.get_by_text(name, exact=True).first).to_be_visible(
                timeout=60_000
            )
        page.screenshot(path=pictures / "prefect-runs.png")
        page.goto(f"{up.state['ui_url']}/runs/flow-run/{batch.id}")
        expect(page.get_by_text("sync-digits-nd-cao-s0").first).to_be_visible(
            timeout=60_000
        )
        page.screenshot(path=pictures / "prefect-batch.png")
        page.goto(f"{up.state['ui_url']}/artifacts")
        for key in ("summary-little", "runs-little", "progress-little"):
            expect(page.get_by_text(key).first).to_be_visible(timeout=60_000)
        browser.close()


def test_up__nothing_of_it_answers_to_another_machine(up, batch, out_of_reach):
    out_of_reach(up.process.pid)


CREATE = """
async ([url, id]) => {
  const body = JSON.stringify({parameters: {name: 'digits'}});
  const ways = [
    {mode: 'no-cors', body: new Blob([body])},  // Prefect takes it for JSON
    {body, headers: {'Content-Type': 'application/json'}},
  ];
  for (const way of ways)
    await fetch(`${url}/deployments/${id}/create_flow_run`, {method: 'POST', ...way})
      .catch(() => null);
  const socket = new WebSocket(url.replace('http', 'ws') + '/events/in');
  return await new Promise(end => {
    socket.onopen = () => end('open');
    socket.onerror = () => end('refused');
  });
}
"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium")
def test_up__a_page_of_another_origin_runs_nothing(up, tmp_path):
    from playwright.sync_api import sync_playwright

    with up.client() as client:
        (ingest,) = [d for d in client.read_deployments() if d.name == "data"]
    before = len(up.flow_runs(deployment_id=ingest.id))
    port = urlsplit(up.state["ui_url"]).port
    (tmp_path / "index.html").write_text("<p>any page")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    answers = {}
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as other,
        sync_playwright() as playwright,
    ):
        threading.Thread(target=other.serve_forever).start()
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", f"--host-resolver-rules=MAP rebound.example {HERE}"],
        )
        page = browser.new_page()
        page.goto(f"http://{HERE}:{other.server_port}/")
        url = f"http://{HERE}:{port}/api"
        answers["socket"] = page.evaluate(CREATE, [url, str(ingest.id)])
        rebound = page.goto(f"http://rebound.example:{port}/api/health")
        answers["rebound"] = (rebound.status, rebound.text().partition(";")[0])
        browser.close()
        other.shutdown()
    assert answers == {
        "socket": "refused",
        "rebound": (403, "`Host` must be 127.0.0.1 or localhost"),
    }
    assert len(up.flow_runs(deployment_id=ingest.id)) == before
    dashboard = urlsplit(up.state["dashboard"])
    for origin, status in (("http://evil.example", 403), (None, 101)):
        assert websocket(dashboard, origin or f"http://{dashboard.netloc}") == status


def websocket(dashboard, origin):
    """Status of the answer when a page of ``origin`` opens the dashboard's socket."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": "bokeh, token",
        "Origin": origin,
    }
    with closing(HTTPConnection(dashboard.netloc, timeout=30)) as connection:
        connection.request("GET", "/status/ws", headers=headers)
        return connection.getresponse().status


def test_up__refuses_a_second_one_in_the_same_home(up):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "up", "--port", "0"],
        env={**os.environ, "NDCAO_HOME": str(up.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "must run once in a home" in done.stderr


def test_up__leaves_no_process_when_it_is_ended_while_a_run_trains(up, batch):
    up.prefect(
        *("deployment", "run", "train/run", "--param"),
        'config={"dataset": "digits", "seed": 7, "budget": {"steps": 1000000},'
        ' "checkpoint_every_s": 1}',
    )
    folder = up.home / "results" / "default"
    until(lambda: list(folder.glob("*.checkpoint.npz")), 90, "a checkpoint")
    processes = psutil.Process(up.process.pid).children(recursive=True)
    assert len(processes) >= 6

    up.process.send_signal(signal.SIGINT)

    assert up.process.wait(timeout=90) == 0, up.log.read_text()
    left = psutil.wait_procs(processes, timeout=5)[1]
    assert not left
    assert list(folder.glob("*.checkpoint.npz"))
    assert not (up.home / ".ndcao" / "up.json").exists()


def test_up__ends_by_itself_when_it_is_killed(up):
    end(up.process)
    killed = start(up.home, "--no-deploy")

    def below():
        found = psutil.Process(killed.process.pid).children(recursive=True)
        return found if len(found) >= 6 else None  # with Dask's workers

    processes = until(below, 60, "all have started")

    killed.process.kill()

    killed.process.wait(timeout=30)
    left = psutil.wait_procs(processes, timeout=60)[1]
    assert not left
