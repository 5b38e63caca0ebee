"""``python -m tests.faults``: every fault that is generated, and what came of it.

Prints the counts; exits with 1 if anything was silently wrong, a raw error or a hang.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import parsers, report, stores, writers
from tests.faults.report import Case

PARTS = {"writers": writers.cases, "parsers": parsers.cases, "stores": stores.cases}
SAID_S = 30.0  # between two words on how far it is


def _said(part: str, cases: Iterator[Case]) -> Iterator[Case]:
    """Yield the cases of a part, and say now and then how many there were."""
    last = time.monotonic()
    for number, case in enumerate(cases, start=1):
        yield case
        if time.monotonic() - last > SAID_S:
            last = time.monotonic()
            print(f"{part}: {number:,} cases so far", file=sys.stderr, flush=True)


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--sample", type=int, help="so many cases of each thing")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shown", type=int, default=report.SHOWN)
    options = parser.parse_args()
    began, cases, failed = time.monotonic(), [], []
    for part in options.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="ndcao-faults-") as folder:
            os.environ["NDCAO_HOME"] = str(Path(folder) / "home")
            run = PARTS[part](Path(folder), options.jobs, options.sample, options.seed)
            found = list(_said(part, run))
        failed += report.failures(found, options.shown)
        print(report.table(found), flush=True)
        cases += found
    print("\n".join(failed))
    print(f"{len(cases)} cases in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
