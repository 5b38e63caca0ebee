"""The bar in Prefect's UI: newest state only, and nobody waits for the API."""

import logging
import threading
import time

import httpx
import pytest

import flows.bar as b


@pytest.fixture
def api(monkeypatch):
    """Stands in for the API: answers when ``gate`` is open; keeps what it was sent."""

    class Api:
        def __init__(self):
            self.gate, self.sent, self.error = threading.Event(), [], None

        def take(self, percent):
            assert self.gate.wait(10)
            if self.error:
                raise self.error
            self.sent.append(percent)

    one = Api()
    monkeypatch.setattr(b, "get_run_logger", lambda: logging.getLogger("bar"))
    monkeypatch.setattr(
        b, "create_progress_artifact", lambda percent, **_: one.take(percent) or "id"
    )
    monkeypatch.setattr(
        b, "update_progress_artifact", lambda _, percent, **__: one.take(percent)
    )
    return one


def test_bar__a_server_that_does_not_answer_holds_nobody_up(api):
    bar = b.BarArtifact("key")
    began = time.monotonic()
    for percent in range(1, 100):
        bar.send(float(percent), "training")
    assert time.monotonic() - began < 5.0
    assert api.sent == []

    api.gate.set()
    bar.close()

    assert api.sent[-1] == 99.0
    assert len(api.sent) <= 3  # the first, what was newest then, the last


def test_bar__closing_waits_for_the_last_state_but_not_for_ever(
    api, monkeypatch, caplog
):
    monkeypatch.setattr(b, "END_S", 0.1)
    bar = b.BarArtifact("key")
    bar.close()
    assert "no answer" in caplog.text
    api.gate.set()


def test_bar__an_error_of_the_api_is_a_warning(api, caplog):
    api.error = httpx.ConnectError("refused")
    api.gate.set()
    bar = b.BarArtifact("key")
    bar.close()
    assert "no progress artifact" in caplog.text
    assert "refused" in caplog.text
