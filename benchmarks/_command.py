"""What was typed: running it again measures the same thing."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

TYPED = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
