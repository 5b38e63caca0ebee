"""Keeping processes alive, and ending all of them."""

import json
import sys
import threading
import time

import psutil
import pytest

from flows import supervisor as s
from flows import up_state

SLEEP = "import time; time.sleep(600)"
# Has a child, and neither of them minds SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
child = subprocess.Popen([sys.executable, "-c", code + "; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


# Has a child that dies when it is asked, and one that does not; puts a third one in the
# place of the first.
RESTLESS = """
import subprocess, sys, time
sleep = "import time; time.sleep(600)"
deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
def start(name, code):
    child = subprocess.Popen([sys.executable, "-c", code])
    open(sys.argv[1] + name, "w").write(str(child.pid))
    return child
start("deaf", deaf + "open(sys.argv[0] and %r, 'w').close(); " % (sys.argv[1] + "up")
      + sleep)
start("first", sleep).wait()
start("second", sleep)
time.sleep(600)
"""


@pytest.fixture
def told():
    return []


@pytest.fixture
def watched(told):
    one = s.Supervisor(told.append)
    yield one
    one.stop()


def program(tmp_path, code, *words, name="part"):
    return s.Program(name, [sys.executable, "-c", code, *words], {}, tmp_path / "log")


def until(ready, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.05)


def test_supervisor__starts_again_what_was_killed_and_says_so(watched, told, tmp_path):
    watched.start(program(tmp_path, SLEEP))
    first = watched.processes()[0][1]
    stop = s.Stop()
    thread = threading.Thread(target=watched.watch, args=(stop,))
    thread.start()

    psutil.Process(first).kill()
    until(lambda: watched.processes()[0][1] != first)
    stop.set()
    thread.join(timeout=10)

    assert told == ["part was ended by SIGKILL: starting it again"]


def test_supervisor__ends_what_outlived_a_part_that_was_killed(watched, tmp_path):
    marker = tmp_path / "child"
    watched.start(program(tmp_path, STUBBORN, str(marker)))
    until(lambda: marker.exists() and marker.read_text())
    child, first = int(marker.read_text()), watched.processes()[0][1]
    stop = s.Stop()
    thread = threading.Thread(target=watched.watch, args=(stop,))
    thread.start()
    psutil.Process(first).kill()
    until(lambda: watched.processes()[0][1] != first)
    stop.set()
    thread.join(timeout=10)
    assert psutil.pid_exists(child)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s, "GRACE_S", 0.5)
        watched.stop()

    until(lambda: not psutil.pid_exists(child))


def test_supervisor__gives_up_on_what_dies_at_once_every_time(
    watched, tmp_path, monkeypatch
):
    monkeypatch.setattr(s, "FIRST_PAUSE_S", 0.01)
    watched.start(program(tmp_path, "raise SystemExit('no licence')"))

    with pytest.raises(RuntimeError, match=r"(?s)6 times in a row.*no licence"):
        watched.watch(s.Stop())


def test_supervisor__names_the_log_of_what_does_not_become_ready(watched, tmp_path):
    watched.start(program(tmp_path, "raise SystemExit('port taken')"))

    with pytest.raises(RuntimeError, match=r"(?s)ready within 30 s.*port taken"):
        watched.wait_until(lambda: False, "part", 30, s.Stop())


def test_end_tree__kills_what_ignores_its_signal_and_all_below(tmp_path, monkeypatch):
    monkeypatch.setattr(s, "GRACE_S", 0.5)
    one = s.Supervisor(lambda _: None)
    marker = tmp_path / "child"
    one.start(program(tmp_path, STUBBORN, str(marker)))
    until(lambda: marker.exists() and marker.read_text())
    pids = [one.processes()[0][1], int(marker.read_text())]

    one.stop()

    until(lambda: not any(map(psutil.pid_exists, pids)))


def test_end_tree__ends_what_is_started_while_children_end(tmp_path, monkeypatch):
    monkeypatch.setattr(s, "GRACE_S", 3.0)
    marker = str(tmp_path / "child-")
    one = s.Supervisor(lambda _: None)
    code = [sys.executable, "-c", RESTLESS, marker]
    one.start(s.Program("part", code, {}, tmp_path / "log", grandchildren_first=True))
    until(lambda: all((tmp_path / f"child-{n}").exists() for n in ("up", "first")))

    one.stop()

    second = int((tmp_path / "child-second").read_text())
    until(lambda: not psutil.pid_exists(second))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"up": 1}', '{"up": {"pid": "1"}, "processes": []}']
)
def test_up_state__a_file_that_is_none_counts_as_none(tmp_path, monkeypatch, text):
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    up_state.folder().mkdir()
    up_state.state_file().write_text(text)
    assert up_state.running() is None
    assert up_state.leftovers() == []


def test_up_state__finds_what_a_killed_up_left_behind(watched, tmp_path, monkeypatch):
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path))
    watched.start(program(tmp_path, SLEEP))
    up_state.write({"ready": True, "api_url": "x"}, watched.processes())
    assert up_state.running()["api_url"] == "x"
    assert up_state.leftovers() == []

    state = json.loads(up_state.state_file().read_text())
    state["up"]["started"] -= 1000  # another process has that number now
    up_state.state_file().write_text(json.dumps(state))

    assert up_state.running() is None
    assert up_state.leftovers() == [watched.processes()[0][1]]
