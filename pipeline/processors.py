"""What decides a run's last bits beside its settings: processors, and who used which.

Equal ids promise equal bits on one kind of processor and one set of packages. A run
whose parts were computed on several kinds records them all, and says that nobody's
machine need give its bits again.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Environment variables by which torch's libraries are told what to compute with.
CODE_PATHS = (
    *("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
)

Processor = dict[str, Any]


def processor() -> Processor:
    """Return what this process computes with: everything that its last bits hang on."""
    gpus = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return {
        "processor": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "code_paths": {n: os.environ[n] for n in CODE_PATHS if os.environ.get(n)},
        "gpus": sorted(gpus),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def processor_name() -> str:
    """The processor as its maker calls it; "" if the system does not say."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def kinds(found: Iterable[Processor], device: str) -> list[Processor]:
    """Return the distinct ones, in order; without GPUs where none is used."""
    distinct: list[Processor] = []
    for one in found:
        kind = one if device == "cuda" else one | {"gpus": []}
        if kind not in distinct:
            distinct.append(kind)
    return distinct


def several(run_id: str, found: Sequence[Processor]) -> list[str]:
    """Say that a run's parts were computed on several kinds; [] if on one."""
    if len(found) < 2:
        return []
    return [
        f"`run` {run_id} was computed on {len(found)} kinds of processor "
        f"({'; '.join(_described(one) for one in found)}), so its bits are nobody's: "
        "no machine need give them again. Train it on one kind to have a run that "
        "replays to the last bit."
    ]


def _described(one: Processor) -> str:
    told = [
        *one.get("gpus", []),
        str(one.get("cpu_capability", "")),
        *(f"{name}={value}" for name, value in one.get("code_paths", {}).items()),
        *(f"{name} {one[name]}" for name in ("torch", "numpy") if name in one),
    ]
    return f"{one.get('processor') or 'unnamed'}, {', '.join(filter(None, told))}"
