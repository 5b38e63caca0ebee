"""A sample of what ``make faults`` tries; see docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = {"writers": 2, "parsers": 60, "stores": 7}  # cases of each thing


@pytest.mark.slow
@pytest.mark.parametrize("part", list(SAMPLES))
def test_faults__a_sample_is_never_silent_raw_or_endless(part):
    command = [sys.executable, "-m", "tests.faults", "--part", part, "--jobs", "2"]
    done = subprocess.run(
        [*command, "--sample", str(SAMPLES[part])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
