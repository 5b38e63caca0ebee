"""Numbers hold on other code paths of this processor than the one it chooses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_numerical_tests__pass_under_other_code_paths() -> None:
    script = Path(__file__).parent / "code_paths.py"
    command = [sys.executable, str(script), "--sample"]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count(" passed in ") == 2
