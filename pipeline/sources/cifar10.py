"""CIFAR-10 (Krizhevsky, Nair, Hinton, 2009), binary version: one tar of six files."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from pipeline.sources.known import CIFAR10_ARCHIVE_MD5, CIFAR10_MEMBERS, KNOWN
from pipeline.sources.raw import Batch, RawDataset, RawSplit, checked
from pipeline.sources.streams import (
    PIECE_BYTES,
    CheckedStream,
    WholeTarInfo,
    md5_of,
    open_stream,
    refuse_unsafe_name,
    require_file,
    unpacked_file,
)

SHAPE = (3, 32, 32)
FOLDER = "cifar-10-batches-bin"
RECORD_BYTES = 1 + 3 * 32 * 32  # one label byte, then the red, green and blue planes


@dataclass(frozen=True, slots=True)
class _Member:
    file: IO[bytes]  # a nameless temporary file: the archive's order is not ours
    n_samples: int
    sha256: str


@contextmanager
def open_cifar10(source: Path, unverified: bool) -> Iterator[RawDataset]:
    """Read the binary archive, gzip or not, or the folder that it unpacks to.

    Parameters
    ----------
    source : Path — ``cifar-10-binary.tar.gz``, the folder ``cifar-10-batches-bin`` or
        one around it.
    unverified : bool — take an archive of that layout that is not the published one;
        some of the five training files may be missing then.

    Raises
    ------
    FileNotFoundError — if there is no such file or folder.
    ValueError — if it is not such an archive, is damaged, holds unsafe member names, or
        is not the published one.
    """
    if not source.is_dir():
        require_file(source)
    with ExitStack() as stack:
        copied = _copy_folder if source.is_dir() else _unpack
        members = copied(source, stack)
        train = [members[name] for name in sorted(members) if name != "test_batch.bin"]
        if not train or "test_batch.bin" not in members:
            raise ValueError(
                "`source` must hold data_batch_1.bin … data_batch_5.bin and "
                f"test_batch.bin; got {sorted(members) or 'none of them'} at {source}. "
                "Take the archive called 'binary version', or the folder "
                "cifar-10-batches-bin in it; ingest class folders of images as "
                "image-folder."
            )
        verified = not unverified
        if verified:
            _verify(members, source)
        yield RawDataset(
            train=_split(train, source),
            test=_split([members["test_batch.bin"]], source),
            image_shape=SHAPE,
            dtype=np.dtype(np.uint8),
            class_names=KNOWN["cifar10"].class_names,
            source=f"cifar10: {source.name}, "
            + ("as published" if verified else "unverified"),
            verified=verified,
        )


def _verify(members: dict[str, _Member], source: Path) -> None:
    got = {name: member.sha256 for name, member in members.items()}
    if got == CIFAR10_MEMBERS:
        return
    if source.is_file() and md5_of(source) == CIFAR10_ARCHIVE_MD5:
        return
    wrong = sorted(n for n, digest in CIFAR10_MEMBERS.items() if got.get(n) != digest)
    raise ValueError(
        "`cifar10` must be the published binary archive (MD5 "
        f"{CIFAR10_ARCHIVE_MD5}, or members with its checksums); got other content in "
        f"{', '.join(wrong)} at {source}. Fetch it again, pass --unverified for a "
        "re-packed or partial copy, or ingest class folders of images as image-folder."
    )


def _unpack(source: Path, stack: ExitStack) -> dict[str, _Member]:
    """Copy the wanted members to temporary files, in one pass over the archive."""
    found: dict[str, _Member] = {}
    with open_stream(source) as stream:
        try:
            with tarfile.open(
                fileobj=stream, mode="r|", tarinfo=WholeTarInfo
            ) as archive:
                for info in archive:
                    refuse_unsafe_name(info.name, source)
                    name = PurePosixPath(info.name).name
                    if info.isreg() and name in CIFAR10_MEMBERS:
                        unpacked = archive.extractfile(info)
                        assert unpacked is not None  # it is a regular file
                        if name in found:
                            raise ValueError(
                                "`source` must hold each batch once; got a second "
                                f"{info.name} at {source}. Pack it again."
                            )
                        file = stack.enter_context(unpacked_file(source))
                        found[name] = _spool(unpacked, file, f"{source}: {info.name}")
            stream.drain()  # gzip's checksum comes last
        except tarfile.TarError as err:
            raise ValueError(
                f"`source` must be a whole tar archive; got {source} ({err}). "
                "Take cifar-10-binary.tar.gz as published."
            ) from err
    return found


def _copy_folder(source: Path, stack: ExitStack) -> dict[str, _Member]:
    """Copy the wanted files of a folder: they may change while they are read twice."""
    inside = source / FOLDER
    folder = inside if inside.is_dir() else source
    found: dict[str, _Member] = {}
    for name in CIFAR10_MEMBERS:
        path = folder / name
        if path.exists():
            file = stack.enter_context(unpacked_file(source))
            with open_stream(path) as stream:
                found[name] = _spool(stream, file, str(path))
    return found


def _spool(unpacked: IO[bytes] | CheckedStream, file: IO[bytes], where: str) -> _Member:
    digest = hashlib.sha256()
    n_bytes = 0
    while piece := unpacked.read(PIECE_BYTES):
        digest.update(piece)
        n_bytes += len(piece)
        file.write(piece)
    n_samples, extra = divmod(n_bytes, RECORD_BYTES)
    if extra or not n_samples:
        raise ValueError(
            f"`source` must hold whole records of {RECORD_BYTES} bytes; got {n_bytes} "
            f"bytes at {where}. Fetch the archive again."
        )
    return _Member(file, n_samples, digest.hexdigest())


def _split(members: list[_Member], source: Path) -> RawSplit:
    n_samples = sum(member.n_samples for member in members)

    def read(rows: int, limit: int) -> Iterator[Batch]:
        left = limit
        for member in members:
            member.file.seek(0)
            todo = min(left, member.n_samples)
            left -= todo
            while todo:
                data = member.file.read(min(rows, todo) * RECORD_BYTES)
                records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
                todo -= len(records)
                images = records[:, 1:].reshape(-1, *SHAPE)
                yield images, records[:, 0].astype(np.int64)

    def batches(rows: int, limit: int) -> Iterator[Batch]:
        return checked(read(rows, limit), SHAPE, 10, str(source))

    return RawSplit(n_samples, batches)
