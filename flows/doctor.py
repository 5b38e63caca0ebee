"""Checks of an installation: versions, folders, devices, servers.

Every check returns a finding instead of raising, so that one broken part never hides
another; what a check cannot decide it says.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from flows.environment import default_results, home

PACKAGES = (
    "ndcao",
    "torch",
    "dask",
    "distributed",
    "prefect",
    "fastapi",
    "xarray",
    "zarr",
    "numpy",
    "pydantic",
)
LOW_DISK_BYTES, NO_DISK_BYTES = 2_000_000_000, 100_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: ``ok``, ``note`` (for your information), ``warn`` or ``fail``."""

    name: str
    verdict: Literal["ok", "note", "warn", "fail"]
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the finding as plain values."""
        return asdict(self)


def diagnose(
    *, address: str | None, scheduler_file: Path | None, timeout_s: float
) -> list[Check]:
    """Run every check; servers get ``timeout_s`` seconds to answer."""
    from flows import doctor_servers

    versions = installed_versions()
    checks = [check_python(sys.version_info[:3])]
    checks += check_versions(versions)
    checks.append(check_requirements(declared_requirements()))
    checks.append(check_folder("data folder", home() / "data"))
    checks.append(check_folder("results folder", default_results()))
    checks.append(check_disk(shutil.disk_usage(_nearest(home())).free))
    checks.append(check_devices())
    checks.append(doctor_servers.check_proxies())
    checks.append(doctor_servers.check_prefect(timeout_s))
    checks.append(doctor_servers.check_cluster(address, scheduler_file, timeout_s))
    return checks


def installed_versions() -> dict[str, str | None]:
    """Return the version of each package we depend on, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def check_python(running: tuple[int, ...]) -> Check:
    """Python 3.11 or 3.12."""
    found = f"{'.'.join(map(str, running))} on {platform.system()} {platform.machine()}"
    if (3, 11) <= running[:2] < (3, 13):
        return Check("python", "ok", found)
    advice = "Use Python 3.11: `make install` makes an environment with it."
    return Check("python", "fail", found, advice)


def check_versions(versions: dict[str, str | None]) -> list[Check]:
    """List what is installed, and every combination that is known to break.

    Parameters
    ----------
    versions : package → version, None where it is not installed.
    """
    required = [name for name in PACKAGES if name != "ndcao"]
    missing = [name for name in required if versions.get(name) is None]
    listed = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    if missing:
        advice = f"Missing: {', '.join(missing)}. Run `make install`."
        checks = [Check("packages", "fail", listed, advice)]
    else:
        checks = [Check("packages", "ok", listed)]
    broken = list(_known_bad(versions))
    return checks + (broken or [Check("combinations", "ok", "none known to be bad")])


def declared_requirements() -> list[str]:
    """Return what the installed ndcao requires, extras left out."""
    try:
        return [text for text in requires("ndcao") or [] if "extra ==" not in text]
    except PackageNotFoundError:
        return []


def check_requirements(requirements: list[str]) -> Check:
    """Compare the installed versions with the bounds that ndcao declares."""
    from packaging.requirements import Requirement

    if not requirements:
        advice = "ndcao itself is not installed, so its bounds are unknown."
        return Check("bounds", "warn", "not checked", advice)
    wrong = []
    for text in requirements:
        wanted = Requirement(text)
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = "nothing"
        if found == "nothing" or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name}{wanted.specifier} (found {found})")
    if wrong:
        return Check("bounds", "fail", "; ".join(wrong), "Run `make install`.")
    return Check("bounds", "ok", f"all {len(requirements)} requirements are met")


def _known_bad(versions: dict[str, str | None]) -> Iterator[Check]:
    prefect, fastapi = _release(versions["prefect"]), _release(versions["fastapi"])
    if prefect[:2] == (3, 8) and fastapi >= (0, 151):
        what = "does not start" if fastapi >= (0, 155) else "refuses deployments (422)"
        yield Check(
            "combinations",
            "fail",
            f"prefect {versions['prefect']} with fastapi {versions['fastapi']}: "
            f"Prefect's server {what}",
            "Run: pip install 'fastapi>=0.139,<0.151'",
        )
    if versions["zarr"] and _release(versions["zarr"]) < (3,):
        yield Check(
            "combinations",
            "fail",
            f"zarr {versions['zarr']} cannot read or write our stores",
            "Run: pip install 'zarr>=3.1.6,<4'",
        )
    if versions["dask"] != versions["distributed"]:
        yield Check(
            "combinations",
            "fail",
            f"dask {versions['dask']} with distributed {versions['distributed']}",
            "Install the same release of both.",
        )


def _release(text: str | None) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``2.13.0+cpu`` → (2, 13, 0)."""
    numbers = []
    for part in (text or "").split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not part[:1].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _nearest(path: Path) -> Path:
    """Return ``path`` or its nearest ancestor that exists."""
    path = path.resolve()
    return next(p for p in (path, *path.parents) if p.exists())


def check_folder(name: str, path: Path) -> Check:
    """Whether files can be created in a folder, or it could be created."""
    place = _nearest(path)
    found = str(path.resolve())
    if not place.is_dir():
        return Check(name, "fail", found, f"{place} is a file. Move it away.")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        advice = f"Not writable ({error.strerror}). Set NDCAO_HOME to another folder."
        return Check(name, "fail", found, advice)
    return Check(name, "ok", found if path.exists() else f"{found} (made on first use)")


def check_disk(free_bytes: int) -> Check:
    """Free space where data and results go."""
    found = f"{free_bytes / 1e9:.1f} GB free"
    if free_bytes < NO_DISK_BYTES:
        return Check("disk", "fail", found, "Free some space, or set NDCAO_HOME.")
    if free_bytes < LOW_DISK_BYTES:
        return Check("disk", "warn", found, "Long runs may fill it.")
    return Check("disk", "ok", found)


def check_devices() -> Check:
    """Processors and GPUs, and whether this torch can use the GPUs there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    found = f"{cores or os.cpu_count()} cores"
    try:
        import torch
    except ImportError as error:
        return Check("devices", "fail", found, f"torch: {error}. Run `make install`.")
    driver = shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        names = [
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        ]
        found += f", CUDA {torch.version.cuda}: {', '.join(names)}"
        return Check("devices", "ok", found)
    if driver and torch.version.cuda is None:
        advice = (
            "An NVIDIA driver is here but torch is a CPU build: install a CUDA one."
        )
        return Check("devices", "warn", f"{found}, torch {torch.__version__}", advice)
    if driver:
        advice = (
            f"torch is built for CUDA {torch.version.cuda} and sees no GPU: compare "
            "`nvidia-smi` and CUDA_VISIBLE_DEVICES."
        )
        return Check("devices", "warn", found, advice)
    return Check("devices", "ok", f"{found}, no GPU (the default device is cpu)")


def describe_memory(n_bytes: Any) -> str:
    """Return a memory size in GB."""
    return f"{float(n_bytes) / 1e9:.1f} GB"
