"""Memory of a worker: what is freed is used again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from pipeline.memory import keep_freed
if "keep" in sys.argv:
    keep_freed()
def use():
    for _ in range(50):
        np.ones(2**19)  # 4 MiB: a page fault every 4 KiB where it is mapped anew
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*flags: str) -> int:
    """Page faults of a process that Dask's nanny would have started."""
    answer = subprocess.run(
        [sys.executable, "-c", FAULTS, *flags],
        env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(answer.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_keep_freed__spares_page_faults_that_a_dask_worker_would_have() -> None:
    if "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        pytest.skip("no glibc here")
    assert faults("keep") < faults() / 10
