"""What came of a damage: the same answer, a named error, or one of three failures."""

from __future__ import annotations

import contextlib
import hashlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flows.errors import EXIT_USAGE, describe, exit_code

#: A silent one gave another answer; a raw one an error that is not ours; a hang none
#: in time (a process that dies counts as one).
Outcome = Literal["same", "named", "silent", "raw", "hang"]


LIMIT_S = 60.0
_SENTENCE = re.compile(r"(`[^`]+`|:\d+: ).*[.)…?]$")  # or file and line


class Hang(BaseException):
    """Raised in the main thread when the limit is over; no handler of ours takes it."""


@contextlib.contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    """Raise :class:`Hang` if the block takes longer."""

    def over(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judged(read: Callable[[], Any], right: str | None) -> tuple[Outcome, str]:
    """Read, and say what came of it.

    Parameters
    ----------
    read : returns an answer, as :func:`digest` takes it.
    right : the digest of the answer without damage; None = every answer is right.
    """
    try:
        with limited():
            answer = digest(read())
    except Hang:
        return "hang", f"no answer in {LIMIT_S:g} s"
    except BaseException as error:
        said = describe(error)
        return ("named", said) if is_named(error) else ("raw", f"{type(error)}: {said}")
    return ("same", "") if right in (None, answer) else ("silent", "another answer")


def is_named(error: BaseException) -> bool:
    """Whether an error is one sentence of ours for input that the user can correct."""
    said = describe(error)
    return exit_code(error) == EXIT_USAGE and _SENTENCE.search(said) is not None


def digest(answer: Any) -> str:
    """Return a hash of any answer: numbers, texts, arrays, and what holds them."""
    found = hashlib.sha256()
    for part in _parts(answer):
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield b"{"
        for key in sorted(value, key=str):
            yield f"{key}:".encode()
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        yield b"["
        for item in value:
            yield from _parts(item)
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield (
            repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
        )
    elif isinstance(value, bytes):
        yield value
    else:
        assert isinstance(value, (str, int, float, bool, np.generic, Path, type(None)))
        yield f"{type(value).__name__} {value!r}".encode()
    yield b";"
