"""``python -m tests.faults``: every fault that is generated, and what came of it.

Prints the counts; exits with 1 if anything was silently wrong, a raw error or a hang.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import parsers, report, stores, writers

PARTS = {"writers": writers.cases, "parsers": parsers.cases, "stores": stores.cases}


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
            found = list(run)
        failed += report.failures(found, options.shown)
        print(report.table(found), flush=True)
        cases += found
    print("\n".join(failed))
    print(f"{len(cases)} cases in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
