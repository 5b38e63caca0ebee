"""Fixtures of the whole suite, and a home of its own for everything tests write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    # Before any test module imports Prefect: nothing is sent anywhere, and neither the
    # user's Prefect database nor ./data and ./results are touched; subprocesses too.
    home = tempfile.TemporaryDirectory(prefix="ndcao-", ignore_cleanup_errors=True)
    config.stash[_home] = home
    os.environ["NDCAO_HOME"] = str(Path(home.name) / "ndcao")
    os.environ["PREFECT_HOME"] = str(Path(home.name) / "prefect")
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_home].cleanup()


@pytest.fixture
def rng() -> np.random.Generator:
    """Return the one source of randomness of a test: the same stream in every run."""
    return np.random.default_rng(20230718)


@pytest.fixture(scope="session")
def shared_datasets() -> Path:
    """Return the folder with MNIST, Fashion-MNIST and CIFAR-10, where there is one."""
    folder = Path(__file__).parents[1].parent / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder}")
    return folder
