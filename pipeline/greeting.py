"""Connecting a Dask client to a scheduler that is busy talking."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TRIES = 5

logger = logging.getLogger(__name__)


def greeted(connect: Callable[[], T]) -> T:
    """Return ``connect()``, asked again if Dask takes a greeting for a mistake.

    A client asserts that the scheduler greets it with a single message (distributed
    2026.8, ``Client._ensure_connected``). What the scheduler tells all clients at that
    moment, such as keys that another one cancels, comes along and breaks it. Asking
    again connects anew.

    Raises
    ------
    AssertionError — after ``TRIES`` such greetings.
    """
    for _ in range(TRIES - 1):
        try:
            return connect()
        except AssertionError:
            logger.info("the scheduler said more than its greeting: connecting again")
    return connect()
