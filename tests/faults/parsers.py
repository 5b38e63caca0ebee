"""Every parser of what users give, fed with nonsense by hypothesis.

What is fed is a valid text or file that was edited in some places, or anything at all.
A parser returns, or raises an error that names what is wrong; in time, and without
taking the machine's memory.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from blocks.groupings import parse_spec
from flows import up_state
from flows.parsing import (
    parse_budget,
    parse_delays,
    parse_duration,
    parse_sizes,
    parse_target,
)
from pipeline import pack
from pipeline.config import load_config
from pipeline.data_store import open_store
from pipeline.experiment import load_experiment
from pipeline.initial import initial_values
from pipeline.run_store import open_run
from pipeline.runs import export_run, find_run, list_runs
from pipeline.sources import open_source
from pipeline.store import ensure_store
from pipeline.train import load_checkpoint
from tests.faults import samples
from tests.faults.outcomes import judged
from tests.faults.report import Case

ROOT = Path(__file__).parents[2]
EXAMPLES = 3000  # of each parser, in the full run
MORE_BYTES = 2**30  # of address space, for what is parsed
TOKENS = (
    *(
        "",
        " ",
        "\n",
        "\t",
        "\0",
        "=",
        ",",
        ":",
        ".",
        "/",
        "..",
        "~",
        "*",
        "[",
        "]",
        "`",
    ),
    *("null", "true", "-1", "0", "1e400", "nan", "inf", "9" * 400, "9" * 5000, "0x10"),
    *("10:00:00", "1_0", "²", "٣", "é", "\x1b[31m", "\ud800", "'", '"', "&a ", "*a"),
    *("<<: *a", "!!python/object:os.system ", "- - - - ", "{", "}", "[[[[" * 50, "? "),
)


@dataclass(frozen=True)
class Parser:
    """What is parsed: valid examples, texts or bytes, and the function that does it."""

    examples: tuple[Any, ...]
    parse: Callable[[Any, Path], Any]  # also takes a folder for files
    valid: bool = True  # the examples are; else what they name is not there


def edited(examples: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """Return examples with up to six edits, and whatever there is."""
    is_text = isinstance(examples[0], str)
    tokens = st.sampled_from(TOKENS)
    some = st.text(max_size=8) if is_text else st.binary(max_size=8)
    pieces = st.one_of(some, tokens if is_text else tokens.map(_raw))
    size = max(len(example) for example in examples)
    edit = st.tuples(st.integers(0, size), st.integers(0, 20), pieces)

    def apply(example: Any, edits: list[tuple[int, int, Any]]) -> Any:
        for place, length, piece in edits:
            example = example[:place] + piece + example[place + length :]
        return example

    anything = st.text(max_size=200) if is_text else st.binary(max_size=2000)
    near = st.builds(apply, st.sampled_from(examples), st.lists(edit, max_size=6))
    return st.one_of(near, near, near, anything)


def _raw(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


def _file(name: str, parse: Callable[[Path], Any]) -> Callable[[Any, Path], Any]:
    """Return what writes the content to a file first."""

    def parsed(content: Any, folder: Path) -> Any:
        path = folder / name
        path.write_bytes(_raw(content) if isinstance(content, str) else content)
        return parse(path)

    return parsed


def _source(name: str) -> Callable[[Path], Any]:
    def parse(path: Path) -> None:
        with open_source(name, path, unverified=True) as raw:
            for split in (raw.train, raw.test):
                for _ in split.batches(100, 10_000):
                    pass

    return parse


def _idx_folder(content: bytes, folder: Path) -> None:
    files = {"train-images": IMAGES, "train-labels": LABELS, "t10k-images": IMAGES}
    files |= {"t10k-labels": LABELS}
    changed = "train-images" if content[:4] == IMAGES[:4] else "train-labels"
    for name, whole in files.items():
        kind = "idx3" if "images" in name else "idx1"
        data = content if name == changed else whole
        (folder / f"{name}-{kind}-ubyte").write_bytes(data)
    _source("mnist")(folder)


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _png(*, mode: str = "L", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _named(picture: bytes) -> dict[str, bytes]:
    return {f"{c}/{n}.png": picture for c in ("cat", "dog") for n in range(6)}


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in _named(PNG).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _picture(content: bytes, folder: Path) -> None:
    for number, (name, whole) in enumerate(_named(PNG).items()):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole if number else content)
    _source("image-folder")(folder / "images")


def _given() -> Path:
    return Path(os.environ["FAULTS_GIVEN"])


def _runs() -> Path:
    return _given() / "runs"


def _find_run(text: str, _: Path) -> Any:
    return find_run(text, _runs(), checkpoint=True)


def _init(path: Path) -> Any:
    config = samples.config_of(_given() / "d0.zarr", 0, samples.BLOCKS)
    config = config.model_copy(update={"init": str(path)})
    return initial_values(config, open_store(_given() / "d0.zarr"), _runs())


def _up(path: Path) -> Any:
    os.environ["NDCAO_HOME"] = str(path.parent)
    up_state.state_file().parent.mkdir(exist_ok=True)
    path.replace(up_state.state_file())
    return up_state.running(), up_state.leftovers()


def _attributes(path: Path) -> Any:
    """A run's metadata: what lists and opens it sees a folder of other people."""
    store = path.parent / "results" / "default" / "a.zarr"
    store.mkdir(parents=True, exist_ok=True)
    path.replace(store / "zarr.json")
    list_runs(path.parent / "results")
    return open_run(store)


def _data_attributes(path: Path) -> Any:
    store = path.parent / "a.zarr"
    store.mkdir(exist_ok=True)
    path.replace(store / "zarr.json")
    return open_store(store)


IMAGES = bytes.fromhex("00000803 0000000a 00000004 00000004") + bytes(160)
LABELS = bytes.fromhex("00000801 0000000a") + bytes(range(10))
PNG = _png()
RECORDS = bytes([3]) + bytes(3072)
CIFAR = _tar({"data_batch_1.bin": RECORDS * 2, "test_batch.bin": RECORDS})
CONFIG = """
dataset: digits
model: {name: mlp, hidden: [8, 4]}
algorithm: {kind: nd-cao, window: 12, probes: 2}
blocks: by_unit:3
budget: {steps: 30, seconds: 1.5}
mode: async
delays: {1: 0.05}
cluster:
  kind: jobqueue
  workers: 2
  system: slurm
  options: {queue: "0123", walltime: "10:00:00", cores: 1, memory: 2GB}
"""
EXPERIMENT = """
name: windows
description: two windows
base: {dataset: digits, budget: {steps: 10}, model: {hidden: [8]}}
grid:
  algorithm.window: [10, 20]
  mode: [sync, async]
seeds: 2
"""


def parsers() -> dict[str, Parser]:
    """Return every parser with its examples."""
    x, y = np.arange(160, dtype=np.uint8).reshape(10, 4, 4), np.arange(10) % 2
    whole = _npz(x_train=x, y_train=y, x_test=x, y_test=y)
    names = np.array(["a", "b"])
    floats = _npz(x_train=x / 255, y_train=y, x_test=x / 255, y_test=y, classes=names)
    checkpoint = next(_runs().glob("*/*.npz"))
    run = next(_runs().glob("*/*.zarr"))
    metadata = (run / "zarr.json").read_text(encoding="utf-8")
    data = (_given() / "d0.zarr" / "zarr.json").read_text(encoding="utf-8")
    network = export_run(run, _given() / f"{os.getpid()}.safetensors").read_bytes()
    up = {"pid": 1, "started": 1.0}
    state = json.dumps({"ready": True, "up": up, "processes": [up]})
    return {
        "--budget": Parser(("steps=500,seconds=2min",), _text(parse_budget)),
        "--delay": Parser(("2=50ms",), _text(lambda text: parse_delays([text]))),
        "--hidden": Parser(("64,32", "none"), _text(parse_sizes)),
        "--target": Parser(("val_accuracy=0.9",), _text(parse_target)),
        "a duration": Parser(("1.5s", "2min"), _text(parse_duration)),
        "--blocks": Parser(("by_unit:3", "all", "random:4"), _text(parse_spec)),
        "--set": Parser(
            ("nd_cao.window=100", "model.options={a: 1}", "cluster.workers=2"),
            _text(lambda text: load_config(None, [text])),
        ),
        "a run's name": Parser((run.stem, str(run), run.stem[:-1]), _find_run),
        "a data set's name": Parser(
            ("some", "data/some.zarr"),
            lambda text, folder: ensure_store(text, folder),
            valid=False,
        ),
        "an experiment's name": Parser(("smoke", "baselines"), _text(load_experiment)),
        "configuration": Parser((CONFIG,), _file("config.yaml", load_config)),
        "experiment": Parser((EXPERIMENT,), _file("e.yaml", load_experiment)),
        "npz": Parser((whole, floats), _file("a.npz", _source("npz"))),
        "idx": Parser((IMAGES, LABELS), _idx_folder),
        "cifar": Parser(
            (CIFAR, gzip.compress(CIFAR)), _file("a.tar", _source("cifar10"))
        ),
        "zip of images": Parser((_zip(),), _file("a.zip", _source("image-folder"))),
        "tar of images": Parser(
            (_tar(_named(PNG)),),
            _file("a.tar", _source("image-folder")),
        ),
        "image": Parser(
            (PNG, _png(mode="P", kind="GIF"), _png(kind="JPEG"), _png(kind="TIFF")),
            _picture,
        ),
        "checkpoint": Parser(
            (checkpoint.read_bytes(),), _file("a.checkpoint.npz", load_checkpoint)
        ),
        "packed state": Parser((checkpoint.read_bytes(),), _file("a.npz", pack.load)),
        "safetensors": Parser((network,), _file("a.safetensors", _init)),
        "metadata of a run": Parser(
            (metadata,), _file("a.json", _attributes), valid=False
        ),
        "metadata of data": Parser(
            (data,), _file("a.json", _data_attributes), valid=False
        ),
        "state of up": Parser((state,), _file("a.json", _up)),
    }


def _text(parse: Callable[[str], Any]) -> Callable[[Any, Path], Any]:
    return lambda text, _: parse(text)


def cases(folder: Path, jobs: int, n_sample: int | None, seed: int) -> Iterator[Case]:
    """Yield what came of every example of every parser."""
    given_ = folder / "given"
    given_.mkdir()
    data = samples.data_store(given_, "d0", 0)
    samples.run_and_checkpoint(data, given_ / "runs")
    environment = {**os.environ, "FAULTS_GIVEN": str(given_)}
    arguments = [str(folder), str(n_sample or EXAMPLES), str(seed), str(jobs)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.parsers", *arguments, str(job)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in range(jobs)
    ]
    for process in processes:
        assert process.stdout is not None
        for line in process.stdout:
            yield Case(*json.loads(line))
        if process.wait():
            raise RuntimeError("a process that feeds parsers failed; see its traceback")


def _work(folder: Path, n_examples: int, seed_: int, jobs: int, job: int) -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES,) * 2)
    for name in list(parsers())[job::jobs]:
        for case in fed(name, parsers()[name], folder / f"job{job}", n_examples, seed_):
            print(json.dumps(dataclasses.astuple(case)), flush=True)


def fed(
    name: str, parser: Parser, folder: Path, n_examples: int, seed_: int
) -> list[Case]:
    """Feed a parser; return what came of each example."""
    found: list[Case] = []

    @seed(seed_)
    @settings(
        max_examples=n_examples,
        database=None,
        deadline=None,  # of one example: `judged` has a limit of its own
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(edited(parser.examples))
    def feed(content: Any) -> None:
        place = folder / str(len(found) % 2)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        os.environ["NDCAO_HOME"] = str(place)
        outcome, said = judged(lambda: parser.parse(content, place) and None, None)
        case = Case(f"parser: {name}", "fed", "", outcome, f"{content!r:.150}: {said}")
        found.append(case)

    feed()
    if parser.valid:  # else nothing behind the first check was ever reached
        for example in parser.examples:
            feed.hypothesis.inner_test(example)
            if found[-1].outcome != "same":
                raise RuntimeError(f"an example does not parse: {found[-1]}")
    return found


if __name__ == "__main__":
    _work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
