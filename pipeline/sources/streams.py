"""Byte streams that are counted, hashed and never unpack past a stated limit."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO, Self

from pipeline.partial import NO_ROOM
from pipeline.sources import raw

PIECE_BYTES = 2**20
_READ_AT_ONCE = {  # kinds of tar members that tarfile holds in memory: names and such
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}
ZIP_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError),
)
_GZIP_MAGIC = b"\x1f\x8b"


class CheckedStream(io.RawIOBase):
    """Reads another stream, counting and hashing what passes.

    Raises ``ValueError`` naming ``where`` when the content is damaged or passes
    ``raw.MAX_UNPACKED_BYTES``.
    """

    def __init__(self, source: BinaryIO, where: str) -> None:
        self._source = source
        self._where = where
        self._hash = hashlib.sha256()
        self.n_bytes = 0

    def readable(self) -> bool:
        """Return True: this is what the stream is for."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes; fewer only at the end."""
        try:
            data = self._source.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as err:
            raise ValueError(
                f"`source` must be a whole file; got a truncated or damaged one at "
                f"{self._where} ({err}). Fetch it again."
            ) from err
        self.n_bytes += len(data)
        refuse_bomb(self.n_bytes, self._where)
        self._hash.update(data)
        return data

    def read_exactly(self, size: int) -> bytes:
        """Read ``size`` bytes, or raise because the file ends too early."""
        refuse_bomb(self.n_bytes + size, self._where)
        data = self.read(size)
        if len(data) < size:
            raise ValueError(
                f"`source` must be a whole file; got one truncated after "
                f"{self.n_bytes} bytes at {self._where}, {size - len(data)} too few. "
                "Fetch it again."
            )
        return data

    def drain(self) -> int:
        """Read to the end; return how many bytes that was."""
        before = self.n_bytes
        while self.read(PIECE_BYTES):
            pass
        return self.n_bytes - before

    @property
    def sha256(self) -> str:
        """The hash of what was read so far, in hexadecimal."""
        return self._hash.hexdigest()


@contextmanager
def open_stream(path: Path) -> Iterator[CheckedStream]:
    """Open a file, unpacking it where its first bytes say that it is gzip.

    Raises
    ------
    FileNotFoundError — if there is no such file.
    """
    require_file(path)
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield CheckedStream(unpacked, str(path))  # type: ignore[arg-type]
        else:
            yield CheckedStream(file, str(path))


@contextmanager
def zip_damage(say: Callable[[str], ValueError]) -> Iterator[None]:
    """Turn what ``zipfile`` raises over damage into what ``say`` makes of its message.

    Errors of the disk pass: they come with a number that is not that of a place
    outside of the file.
    """
    try:
        yield
    except ZIP_DAMAGED as err:
        raise say(str(err)) from err
    except OSError as err:
        if err.errno not in {None, errno.EINVAL}:
            raise
        raise say(str(err)) from err


@contextmanager
def unpacked_file(source: Path) -> Iterator[IO[bytes]]:
    """Yield a nameless temporary file for what ``source`` unpacks to.

    Raises
    ------
    RuntimeError — if the disk of temporary files has no room for it.
    """
    try:
        with tempfile.TemporaryFile() as file:
            yield file
    except OSError as err:
        if err.errno not in NO_ROOM:
            raise
        raise RuntimeError(
            f"`{tempfile.gettempdir()}` must have room on its disk for what {source} "
            f"unpacks to; got '{err.strerror}'. Free space there, or name another "
            "folder in TMPDIR."
        ) from err


class WholeTarInfo(tarfile.TarInfo):
    """Makes ``tarfile.open(tarinfo=…)`` refuse archives that it takes for ended.

    By itself it stops without a word at the first header that is damaged or cut, and
    the files behind it are missing.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header; raise ``ReadError`` unless it is one, or the end's mark."""
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as err:
            if not any(buf) and len(buf) == tarfile.BLOCKSIZE:
                raise
            raise tarfile.ReadError(f"no end mark, but {err}") from err
        if info.type in _READ_AT_ONCE and info.size > PIECE_BYTES:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


def md5_of(path: Path) -> str:
    """Return the MD5 of a file as published beside it (a name, not a protection)."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for piece in _pieces(file.read):
            digest.update(piece)
    return digest.hexdigest()


def require_file(path: Path) -> None:
    """Raise ``FileNotFoundError`` unless ``path`` is a file."""
    if path.is_dir():
        raise FileNotFoundError(
            f"`source` must be a file; got the folder {path}. Name the file in it "
            "after --from."
        )
    if path.exists() and not path.is_file():
        raise ValueError(
            f"`source` must be a regular file; got a pipe or device, {path}. Save its "
            "content into a file first."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"`source` must be an existing file; got {path}. Check the path "
            "after --from."
        )


def refuse_bomb(n_bytes: int, where: str) -> None:
    """Raise ``ValueError`` if ``n_bytes`` is more than one file may unpack to."""
    if n_bytes > raw.MAX_UNPACKED_BYTES:
        raise ValueError(
            f"`source` must unpack to at most {raw.MAX_UNPACKED_BYTES} bytes; got at "
            f"least {n_bytes} at {where}. If that is what the file holds, raise "
            "`pipeline.sources.raw.MAX_UNPACKED_BYTES`."
        )


def refuse_unsafe_name(name: str, archive: Path) -> None:
    """Raise ``ValueError`` if an archive member's name leaves the archive's folder."""
    windows = PureWindowsPath(name)
    if (
        PurePosixPath(name).is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts
    ):
        raise ValueError(
            f"`source` must hold relative member names without '..'; got {name!r} at "
            f"{archive}. Do not use this archive; pack it again from its folder."
        )


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(PIECE_BYTES):
        yield piece
