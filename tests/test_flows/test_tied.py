"""Programs that end once their parent has gone, in the order that it would choose."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LIMIT_S = 60.0
ROOT = str(Path(__file__).parents[2])
# Says that it is there, starts a child of its own, and says when each is asked to end.
PART = """
import os, pathlib, signal, subprocess, sys, time
name = sys.argv[1]
def say(text):
    with open("said", "a") as file:
        file.write(f"{name}: {text}\\n")
def end(*_):
    say("ends")
    sys.exit()
signal.signal(signal.SIGTERM, end)
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[2]])
say(f"stdin {sys.stdin.read()!r}")
pathlib.Path(f"{name}.pid").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)
"""
PARENT = """
import sys, threading
from pathlib import Path
from flows.supervisor import Program, Supervisor
from flows.tied import command
supervisor = Supervisor(print)
for name, below in (("server", ()), ("worker", ("run",))):
    words = command("part", name, *below, children_first=bool(below))
    supervisor.start(Program(name, words, {}, Path(f"{name}.log"), bool(below)))
threading.Event().wait()
"""


def until(ready, what):
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def family(tmp_path):
    """A parent, a server, a worker and a run that the worker started: pids by name."""
    (tmp_path / "part.py").write_text(PART)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    names = ("server", "worker", "run")
    files = {name: tmp_path / f"{name}.pid" for name in names}
    until(lambda: all(f.exists() and f.read_text() for f in files.values()), "started")
    found = {name: psutil.Process(int(f.read_text())) for name, f in files.items()}
    yield {"parent": parent, **found}
    for process in (parent, *found.values()):
        if process.is_running() if process is not parent else parent.poll() is None:
            process.kill()
    parent.wait(LIMIT_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_tied__programs_end_when_their_parent_is_killed_the_last_started_first(
    family, tmp_path, number
):
    parent = family.pop("parent")

    parent.send_signal(number)

    parent.wait(LIMIT_S)
    _, left = psutil.wait_procs(family.values(), timeout=LIMIT_S)
    assert not left
    said = (tmp_path / "said").read_text().splitlines()
    assert [line for line in said if "ends" in line] == [
        "run: ends",
        "worker: ends",
        "server: ends",
    ]
    assert sum("stdin ''" in line for line in said) == 3


def test_tied__a_part_that_was_killed_before_does_not_keep_the_others(family):
    parent = family.pop("parent")
    family["worker"].kill()
    parent.kill()
    parent.wait(LIMIT_S)
    family["server"].wait(LIMIT_S)
