"""The numerical tests under several code paths of this machine's processor.

Torch's libraries choose instructions by the processor, and so the order in which
numbers are added. Environment variables make them choose as on older processors (MKL
heeds its first one on Intel's only)::

    python tests/code_paths.py            every path, all of tests/test_blocks
    python tests/code_paths.py --sample   what every run of the tests does, in short

Prints a line a path; ends with 1 if one of them failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

PATHS = {
    "SSE4.2": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "compatible": {"MKL_CBWR": "COMPATIBLE"},
    "reproducible AVX2": {"MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "as it comes": {},
}
TESTS = Path(__file__).parent / "test_blocks"
SAMPLED = ("SSE4.2", "compatible")
SAMPLE = (
    *("test_estimators.py", "test_window.py", "test_dbs.py"),
    *("test_activity_segments.py", "test_low_rank.py"),
    "test_activity.py::test_estimate__over_a_complete_design_is_the_gradient",
)
LIMIT_S = 3600


def main(arguments: list[str]) -> int:
    """Run the tests under each path; 1 if any failed."""
    short = arguments == ["--sample"]
    if arguments and not short:
        print(__doc__)
        return 2
    files = [str(TESTS / name) for name in SAMPLE] if short else [str(TESTS)]
    chosen = {n: how for n, how in PATHS.items() if not short or n in SAMPLED}
    failed = [name for name, how in chosen.items() if not _passes(name, how, files)]
    print(f"failed: {', '.join(failed)}" if failed else "passed under every code path")
    return 1 if failed else 0


def _passes(name: str, how: dict[str, str], files: list[str]) -> bool:
    known = {variable for path in PATHS.values() for variable in path}
    plain = {k: v for k, v in os.environ.items() if k not in known}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    began = time.monotonic()
    answer = subprocess.run(
        [*command, "-m", "not gpu"],
        cwd=TESTS.parents[1],
        env=plain | how,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    last = (answer.stdout.strip().splitlines() or ["no output"])[-1]
    print(f"{name:18} {time.monotonic() - began:5.0f} s  {last}", flush=True)
    if answer.returncode:
        print(answer.stdout, answer.stderr, sep="\n", flush=True)
    return answer.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
