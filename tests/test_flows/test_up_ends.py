"""``ndcao up`` when it must end early: signals, no GPU; in this process, no servers."""

import os
import signal

import pytest

from flows import up as u
from flows.cli import run
from flows.up_parts import Parts, check_gpus
from pipeline import cluster


class Nothing:
    """Stands in for the parts of ``up``; ``started`` says what was asked for."""

    def __init__(self, *_):
        self.started = Nothing.started

    def server(self, port):
        self.started.append("server")
        return {"api_url": "http://nowhere/api", "ui_url": "http://nowhere"}

    def dask(self, *_):
        self.started.append("dask")
        return {"scheduler_file": "s.json", "dashboard": "http://nowhere"}

    def environment(self, state):
        return {}

    def worker(self, state):
        self.started.append("worker")


@pytest.fixture
def started(home, monkeypatch):
    monkeypatch.setattr(u, "Parts", Nothing)
    Nothing.started = []
    return Nothing.started


def enter(said, **changed):
    options = {"port": 0, "dask_port": 0, "workers": 1, "gpus": False}
    options |= {"with_deployments": True, "say": said.append, **changed}
    with u.up(**options):
        pass


@pytest.mark.parametrize("fails", [True, False])
def test_up__ctrl_c_while_it_deploys_is_no_error_of_prefects(
    fails, started, monkeypatch
):
    def deploy(*_):
        os.kill(os.getpid(), signal.SIGINT)  # a terminal's goes to its child as well
        if fails:
            raise RuntimeError("`prefect deploy` must succeed; it ended with 130")

    monkeypatch.setattr(u, "deploy", deploy)
    with pytest.raises(KeyboardInterrupt):
        enter([])
    assert started == ["server", "dask"]


def test_up__an_error_of_prefects_is_told(started, monkeypatch):
    def deploy(*_):
        raise RuntimeError("`prefect deploy` must succeed")

    monkeypatch.setattr(u, "deploy", deploy)
    with pytest.raises(RuntimeError, match="must succeed"):
        enter([])


def test_up__without_a_gpu_starts_nothing_for_gpus(started, monkeypatch):
    monkeypatch.setattr(cluster, "visible_gpus", list)
    with pytest.raises(ValueError, match="`--gpus` must find a GPU"):
        enter([], gpus=True)
    assert started == []
    monkeypatch.setattr(cluster, "visible_gpus", lambda: ["0"])
    check_gpus()


def test_signals__a_terminal_that_was_closed_does_not_cut_the_end_short():
    def say(_):
        raise OSError(5, "Input/output error")

    # The tests themselves may run under nohup, which is respected.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with u._stop_on_signal(say) as stop:
            os.kill(os.getpid(), signal.SIGHUP)  # the kernel's, then the shell's
            assert stop.wait(10)
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals__nohup_is_respected_and_all_are_put_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with u._stop_on_signal(print) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not interrupt
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGHUP, before)


def test_server__that_is_configured_is_used_or_the_reason_told(
    home, server_url, monkeypatch
):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def nothing(*_):
        pytest.fail("no server of our own")

    parts = Parts(None, home, None, nothing)
    with temporary_settings({PREFECT_API_URL: server_url}):
        answer = parts.server(0)
    assert answer == {"api_url": server_url, "ui_url": server_url.removesuffix("/api")}
    nobody = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: nobody}),
        pytest.raises(RuntimeError, match=f"refused.* from {nobody}"),
    ):
        parts.server(0)


@pytest.mark.parametrize("flag", ["--port", "--dashboard-port"])
def test_up__a_port_that_cannot_be_is_bad_input(flag, started, capsys):
    assert run(["up", flag, "70000"]) == 2
    assert "65535" in capsys.readouterr().err
    assert started == []
