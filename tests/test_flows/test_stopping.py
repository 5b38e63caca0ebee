import signal
import threading

import pytest

from flows.stopping import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop__first_signal_sets_the_event_and_says_so(number):
    said = []
    with stop_on_signals(said.append) as stop:
        assert not stop.event.is_set()
        signal.raise_signal(number)
        assert stop.event.is_set()
    assert stop.signal_number == number
    assert len(said) == 1
    assert "checkpoint" in said[0]


def test_stop__second_signal_interrupts():
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_stop__handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_stop__off_the_main_thread_it_never_fires_and_never_fails():
    seen = []

    def work():
        with stop_on_signals() as stop:
            seen.append(stop.event.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)
    assert seen == [False]
