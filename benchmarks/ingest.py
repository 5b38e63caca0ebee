"""Time and peak memory of ``ndcao ingest`` as a whole process, imports included.

Divides nothing: the figures are absolute (architecture, section 9). The time is that of
MNIST, gz → verified store. The memory is the largest of four sets: MNIST, an archive of
CIFAR-10's size, an ``.npz`` of 600 MB and a zip of 15,000 images, of which all but the
first are made here.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from _command import TYPED

ROOT = Path(__file__).resolve().parents[1]
GOAL_S = 3.0
GOAL_MB = 400.0


def main() -> None:
    """Measure, print a table, and end with the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mnist",
        type=Path,
        default=ROOT.parent / "shared" / "datasets" / "mnist",
        help="folder with the four files; without it, random ones of the same size",
    )
    parser.add_argument("--repeats", type=int, default=5, help="of the timed ingest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ndcao-ingest-") as name:
        folder = Path(name)
        real = options.mnist.is_dir()
        mnist = options.mnist if real else fake_mnist(folder / "mnist")
        arguments = ["mnist", "--from", str(mnist), *([] if real else ["--unverified"])]
        print(f"MNIST: {mnist if real else 'random images, unverified'}")
        load = round(os.getloadavg()[0], 2)
        measure(folder, arguments)  # warm: byte code, file cache
        runs = [measure(folder, arguments) for _ in range(options.repeats)]
        times = [run.seconds for run in runs]
        peaks = {"mnist": max(run.peak_mb for run in runs)}
        print(
            f"{'mnist':24} {statistics.median(times):6.2f} s  {peaks['mnist']:6.0f} MB"
        )
        for label, make in MAKERS.items():
            run = measure(folder, make(folder))
            peaks[label] = run.peak_mb
            print(f"{label:24} {run.seconds:6.2f} s  {run.peak_mb:6.0f} MB")
    line(
        "ingest.mnist_s",
        statistics.median(times),
        GOAL_S,
        runs=[round(t, 3) for t in times],
        cpu_s=round(statistics.median(run.cpu_s for run in runs), 3),
        load=load,  # before the first run: far above 0, others slowed these runs
        real=real,
    )
    line("ingest.peak_mb", max(peaks.values()), GOAL_MB, sets=peaks)


class Run(NamedTuple):
    """What one process took."""

    seconds: float
    cpu_s: float  # user and system
    peak_mb: float  # 10⁶ bytes


def measure(folder: Path, arguments: list[str]) -> Run:
    """Run one ingest into a fresh store."""
    store = folder / f"{time.monotonic_ns()}.zarr"
    script = Path(sys.executable).with_name("ndcao")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "flows.cli"]
    command = [*program, "ingest", *arguments, "--store", str(store)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None  # piped above
    message = process.stderr.read()
    _, status, usage = os.wait4(
        process.pid, 0
    )  # this child's usage, not all children's
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {message}")
    unit = 1 if sys.platform == "darwin" else 1024
    cpu_s = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu_s, round(usage.ru_maxrss * unit / 1e6, 1))


def line(name: str, value: float, goal: float, **more: object) -> None:
    """Print one figure as the last lines' JSON."""
    figure = {
        "name": name,
        "value": round(value, 3),
        "goal": goal,
        "ok": value <= goal,
        "command": TYPED,
        **more,
    }
    print(json.dumps(figure))


def fake_mnist(folder: Path) -> Path:
    """Write random IDX files of MNIST's size."""
    rng = random.Random(0)
    folder.mkdir()
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        pixels = b"".join(
            bytes(392) + rng.randbytes(100) + bytes(292) for _ in range(n)
        )
        images = struct.pack(">4I", 0x803, n, 28, 28) + pixels
        labels = struct.pack(">2I", 0x801, n) + bytes(i % 10 for i in range(n))
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(content, 6))
    return folder


def cifar_size(folder: Path) -> list[str]:
    """Write an archive of random pixels with CIFAR-10's layout and size (184 MB)."""
    rng = random.Random(0)
    path = folder / "cifar.tar.gz"
    names = [f"data_batch_{i}.bin" for i in (1, 3, 4, 5, 2)]
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in ["test_batch.bin", *names]:
            content = b"".join(
                bytes([i % 10]) + rng.randbytes(3072) for i in range(10_000)
            )
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return ["cifar10", "--from", str(path), "--unverified"]


def large_npz(folder: Path) -> list[str]:
    """Write an ``.npz`` of 4,000 images of 3 × 224 × 224, 602 MB unpacked."""
    path = folder / "large.npz"
    n, shape = 4000, (224, 224, 3)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        image = random.Random(0).randbytes(1024) * (
            shape[0] * shape[1] * shape[2] // 1024
        )
        with archive.open("x.npy", "w", force_zip64=True) as file:
            file.write(npy_header("|u1", (n, *shape)))
            for _ in range(n):
                file.write(image)
        labels = b"".join(struct.pack("<q", i % 10) for i in range(n))
        archive.writestr("y.npy", npy_header("<i8", (n,)) + labels)
    return ["npz", "--from", str(path)]


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Return what stands before an array's values in a ``.npy`` file."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode()


def image_zip(folder: Path) -> list[str]:
    """Write a zip of 15,000 PNG images of 32 × 32 in ten class folders."""
    rng = random.Random(0)
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(15_000):
            archive.writestr(f"{i % 10}/{i:05d}.png", png(32, 32, rng))
    return ["image-folder", "--from", str(path)]


def png(width: int, height: int, rng: random.Random) -> bytes:
    """Return a random RGB image, packed without Pillow (this process stays small)."""

    def part(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
        )

    rows = b"".join(b"\0" + rng.randbytes(3 * width) for _ in range(height))
    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    content = (
        part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows, 1)) + part(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + content


MAKERS = {
    "cifar10-sized archive": cifar_size,
    "npz of 602 MB": large_npz,
    "zip of 15,000 images": image_zip,
}


if __name__ == "__main__":
    main()
