"""Posts between workers: waited for, ended, never waited for without a limit."""

from __future__ import annotations

import logging
import threading

import pytest

from pipeline.mailbox import Mailbox, PieceAborted, _is_news


def test_take__returns_what_was_put_before_it_and_only_once() -> None:
    box = Mailbox()
    box.put("p", "a", 1)
    assert box.take("p", "a", 0.0) == 1
    with pytest.raises(PieceAborted, match="no a came within 0 s"):
        box.take("p", "a", 0.0)


def test_take__waits_for_a_later_put() -> None:
    box, started, got = Mailbox(), threading.Event(), []

    def reader() -> None:
        started.set()
        got.append(box.take("p", "a", 10.0))

    thread = threading.Thread(target=reader)
    thread.start()
    assert started.wait(10)
    box.put("p", "other", 0)
    box.put("q", "a", 0)
    box.put("p", "a", 7)
    thread.join(10)
    assert got == [7]


def test_end__wakes_whoever_waits_and_drops_late_posts() -> None:
    box, problems = Mailbox(), []

    def reader() -> None:
        try:
            box.take("p", "a", 10.0)
        except PieceAborted as err:
            problems.append(str(err))

    thread = threading.Thread(target=reader)
    thread.start()
    box.end("p")
    thread.join(10)
    assert problems == ["piece p was ended while waiting for a"]
    box.put("p", "a", 1)
    with pytest.raises(PieceAborted):
        box.take("p", "a", 10.0)


def test_end__leaves_other_pieces_and_other_attempts_alone() -> None:
    box = Mailbox()
    box.put("run-r0-a0", "x", 1)
    box.put("run-r0-a1", "x", 2)
    box.end("run-r0-a0")
    assert box.take("run-r0-a1", "x", 0.0) == 2


def test_a_worker__logs_other_failures_than_the_users_code() -> None:
    def news(text: str, exception: str) -> bool:
        args = ("key", "executing", "task", exception, "traceback")
        return _is_news(logging.LogRecord("a", 40, "b", 1, text, args, None))

    assert not news("Compute Failed\nKey: %s", "UserCodeError('`loss` must …')")
    assert news("Compute Failed\nKey: %s", "KeyError('a')")
    assert news("Something about %s", "UserCodeError('…')")
