import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flows.stopping import stop_on_signals


def wait_for(condition, limit_s=5.0):
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture(autouse=True)
def terminal():
    """As in a terminal, where SIGHUP is not ignored; the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop__first_signal_sets_the_event_and_says_so(number):
    said = []
    with stop_on_signals(said.append) as stop:
        assert not stop.event.is_set()
        os.kill(os.getpid(), number)
        assert wait_for(stop.event.is_set)
    assert stop.signal_number == number
    assert len(said) == 1
    assert "checkpoint" in said[0]


def test_stop__second_signal_interrupts():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert wait_for(stop.event.is_set)
        with pytest.raises(KeyboardInterrupt):
            interrupt_and_wait()


def interrupt_and_wait():
    os.kill(os.getpid(), signal.SIGINT)
    wait_for(lambda: False)


def test_stop__handlers_and_mask_are_put_back():
    def now():
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), mask

    before, n_threads = now(), threading.active_count()
    with stop_on_signals():
        assert now() != before
    assert now() == before
    assert threading.active_count() == n_threads


def test_stop__nested_runs_share_one_request():
    with stop_on_signals() as outer, stop_on_signals() as inner:
        assert inner is outer
    with stop_on_signals() as later:
        assert later is not outer


def test_stop__processes_started_meanwhile_do_not_see_ctrl_c():
    code = "import time; print('up', flush=True); time.sleep(1); print('alive')"
    with stop_on_signals():
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        answer, _ = process.communicate(timeout=20)
    assert (answer, process.returncode) == ("alive\n", 0)


def test_stop__off_the_main_thread_it_never_fires_and_never_fails():
    seen = []

    def work():
        with stop_on_signals() as stop:
            seen.append(stop.event.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)
    assert seen == [False]


def test_stop__the_second_signal_of_a_closed_terminal_does_not_interrupt():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert wait_for(stop.event.is_set)
        os.kill(os.getpid(), signal.SIGHUP)  # the kernel's, then the shell's
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: False, 0.2)
        assert stop.signal_number == signal.SIGHUP


def test_stop__a_closed_terminal_is_ignored_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: False, 0.2)
        assert not stop.event.is_set()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_stop__a_terminal_that_takes_no_words_does_not_cut_the_end_short():
    def say(_):
        raise OSError(5, "Input/output error")

    with stop_on_signals(say) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert wait_for(stop.event.is_set)
