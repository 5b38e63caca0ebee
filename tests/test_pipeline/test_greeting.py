"""Connecting to a scheduler that says more than its greeting."""

from __future__ import annotations

import pytest

from pipeline.greeting import TRIES, greeted


def after(n_wrong: int):
    """A connection that fails as Dask's does, ``n_wrong`` times."""
    asked = []

    def connect():
        asked.append(None)
        if len(asked) <= n_wrong:
            raise AssertionError
        return len(asked)

    return connect


@pytest.mark.parametrize("n_wrong", [0, 1, TRIES - 1])
def test_greeted__asks_again(n_wrong) -> None:
    assert greeted(after(n_wrong)) == n_wrong + 1


def test_greeted__gives_up_and_hides_no_other_error() -> None:
    with pytest.raises(AssertionError):
        greeted(after(TRIES))
    with pytest.raises(OSError, match="gone"):
        greeted(lambda: (_ for _ in ()).throw(OSError("gone")))
