"""Files by name, wherever they lie: in a folder, a zip or a tar, gzip or not."""

from __future__ import annotations

import os
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.sources.notes import Notes
from pipeline.sources.streams import (
    PIECE_BYTES,
    WholeTarInfo,
    open_stream,
    refuse_bomb,
    refuse_unsafe_name,
    require_file,
    unpacked_file,
    zip_damage,
)

MAX_FILE_BYTES = 256 * 2**20  # one file, as it lies there
CLUTTER = {
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "icon\r",
}  # what systems put into folders
ZIP_START, GZIP_START = b"PK\x03\x04", b"\x1f\x8b"
UTF8_FLAG, UNICODE_PATH = 0x800, 0x7075  # of the zip format: a flag, an extra field


@dataclass(slots=True)
class Members:
    """The files of a folder or archive, without hidden ones.

    Names have ``/`` between folders and composed letters (NFC), whoever packed them.
    ``folders`` are all folders that were named, with or without files.
    """

    where: Path
    read: Callable[[str], bytes]
    files: list[str]
    folders: set[str] = field(default_factory=set)


@contextmanager
def open_members(source: Path, notes: Notes) -> Iterator[Members]:
    """Open a folder, zip or tar for reading its files by name.

    Links are followed in a folder and refused in an archive. A name that an archive
    has twice with one content counts once and is noted.

    Raises
    ------
    FileNotFoundError — if there is no such folder or file.
    ValueError — if it is neither, is damaged, unpacks past the limit, holds unsafe
        names, one name for two contents, or something else than files and folders.
    """
    if source.is_dir():
        yield _of_folder(source)
        return
    if not source.exists():
        raise FileNotFoundError(
            "`source` must be a folder, or a zip or tar, of class folders; got "
            f"{source}. Check the path after --from."
        )
    require_file(source)
    with source.open("rb") as file:
        start = file.read(len(ZIP_START))
    if start.startswith(GZIP_START) or (
        start != ZIP_START and tarfile.is_tarfile(source)
    ):
        with unpacked_file(source) as unpacked:
            yield _of_tar(source, unpacked, notes)
        return

    def no_zip(what: str) -> ValueError:
        return ValueError(
            f"`source` must be a folder or a whole zip or tar; got {source} ({what}). "
            "Pack the class folders again."
        )

    with zip_damage(no_zip):
        archive = zipfile.ZipFile(source)
    with archive:
        yield _of_zip(source, archive, notes)


class _Catalogue:
    """Collects names, each once: what it was called, and where its content is."""

    def __init__(self, source: Path, notes: Notes) -> None:
        self._source, self._notes = source, notes
        self._content: dict[str, tuple[int, int]] = {}  # size, checksum
        self.folders: set[str] = set()

    def add_folder(self, called: str) -> None:
        name = clean_name(called, self._source)
        if not _hidden(name):
            self.folders.add(name)

    def add(self, called: str, size: int, checksum: int) -> str | None:
        """Return the clean name; None where it is hidden, or was there before."""
        name = clean_name(called, self._source)
        if _hidden(name):
            return None
        if size > MAX_FILE_BYTES:
            raise _too_large(self._source, name, size)
        self.folders.update(_parents(name))
        if self._content.setdefault(name, (size, checksum)) != (size, checksum):
            raise ValueError(
                "`source` must name each file once; got two of other content called "
                f"{name} at {self._source}. Remove one of them."
            )
        return name

    def seen(self, name: str) -> None:
        """Note that the archive has ``name`` twice, with one content."""
        self._notes.add("files that the archive holds twice, read once", name)


def _of_folder(folder: Path) -> Members:
    paths: dict[str, Path] = {}
    members = Members(folder, lambda name: _read_file(paths[name]), [])
    todo: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [
        (folder, "", frozenset())
    ]
    while todo:
        parent, inside, above = todo.pop()
        info = parent.stat()
        here = (info.st_dev, info.st_ino)
        if here in above:
            raise ValueError(
                "`source` must not hold a link to a folder around it; got one at "
                f"{parent}. Remove the link."
            )
        for entry in sorted(os.scandir(parent), key=lambda found: found.name):
            name = clean_name(f"{inside}{entry.name}", folder)
            if _hidden(name):
                continue
            if entry.is_dir():
                members.folders.add(name)
                todo.append((Path(entry.path), f"{name}/", above | {here}))
            elif not entry.is_file():
                there = Path(entry.path).exists()
                kind = "no regular file" if there else "a link to nothing"
                raise _no_file(folder, name, kind)
            elif name in paths:
                raise ValueError(
                    "`source` must name each file once; got two that are called "
                    f"{name} when letters are composed at {folder}. Rename one of them."
                )
            else:
                paths[name] = Path(entry.path)
    members.files = list(paths)
    return members


def _read_file(path: Path) -> bytes:
    """Read a regular file of at most ``MAX_FILE_BYTES``, whatever became of it."""
    # Without O_NONBLOCK opening a pipe would wait for somebody who writes into it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise _no_file(path.parent, path.name, "no regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise _too_large(path.parent, path.name, info.st_size)
    return data


def _of_zip(source: Path, archive: zipfile.ZipFile, notes: Notes) -> Members:
    listed = archive.infolist()
    refuse_bomb(sum(info.file_size for info in listed), str(source))
    catalogue = _Catalogue(source, notes)
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in listed:
        called = _zip_name(info)
        refuse_unsafe_name(called, source)
        if called.endswith(("/", "\\")):
            catalogue.add_folder(called)
            continue
        mode = info.external_attr >> 16
        if stat.S_ISLNK(mode):
            raise _no_file(source, called, "a link")
        name = catalogue.add(called, info.file_size, info.CRC)
        if name in infos:
            catalogue.seen(name)
        elif name is not None:
            infos[name] = info

    def read(name: str) -> bytes:
        def damaged(what: str) -> ValueError:
            return ValueError(
                f"`source` must hold whole files; got {source}: {name} ({what}). "
                "Pack the class folders again, without a password."
            )

        with zip_damage(damaged):
            return archive.read(infos[name])

    return Members(source, read, list(infos), catalogue.folders)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name as its packer meant it.

    Many packers write UTF-8 without saying so, which the format takes for code page
    437; others put the UTF-8 name beside, into an extra field.
    """
    if info.flag_bits & UTF8_FLAG:
        return info.orig_filename
    packed = info.orig_filename.encode("cp437")
    extra = info.extra
    while len(extra) >= 4:
        kind, size = (int.from_bytes(extra[i : i + 2], "little") for i in (0, 2))
        value, extra = extra[4 : 4 + size], extra[4 + size :]
        meant = int.from_bytes(value[1:5], "little") == zlib.crc32(packed)
        if kind == UNICODE_PATH and meant:
            packed = value[5:]
    try:
        return packed.decode("utf-8")
    except UnicodeDecodeError:
        return info.orig_filename


def _of_tar(source: Path, unpacked: IO[bytes], notes: Notes) -> Members:
    """Copy the files of a tar to a temporary one, in one pass over the archive."""
    catalogue = _Catalogue(source, notes)
    places: dict[str, tuple[int, int]] = {}
    total = 0
    with open_stream(source) as stream:
        try:
            with tarfile.open(
                fileobj=stream, mode="r|", tarinfo=WholeTarInfo
            ) as archive:
                for info in archive:
                    refuse_unsafe_name(info.name, source)
                    if info.isdir():
                        catalogue.add_folder(info.name)
                        continue
                    if _hidden(clean_name(info.name, source)):
                        continue
                    if not info.isreg() or info.sparse:
                        raise _no_file(source, info.name, "a link or a special file")
                    total += info.size
                    refuse_bomb(total, str(source))
                    file = archive.extractfile(info)
                    assert file is not None  # it is a regular file
                    start = unpacked.tell()
                    checksum = _copy(file, unpacked)
                    name = catalogue.add(info.name, info.size, checksum)
                    if name in places:
                        catalogue.seen(name)
                    elif name is not None:
                        places[name] = (start, info.size)
            stream.drain()  # gzip's checksum comes last
        except (tarfile.TarError, EOFError) as err:
            raise ValueError(
                f"`source` must be a whole tar archive; got {source} ({err}). "
                "Pack the class folders again."
            ) from err

    def read(name: str) -> bytes:
        start, size = places[name]
        unpacked.seek(start)
        return unpacked.read(size)

    return Members(source, read, list(places), catalogue.folders)


def _copy(file: IO[bytes], to: IO[bytes]) -> int:
    checksum = 0
    while piece := file.read(PIECE_BYTES):
        checksum = zlib.crc32(piece, checksum)
        to.write(piece)
    return checksum


def clean_name(called: str, source: Path) -> str:
    """Return a name with ``/`` between folders, composed letters and no ``.`` parts.

    Raises
    ------
    ValueError — if it is not UTF-8.
    """
    try:
        called.encode("utf-8")
    except UnicodeEncodeError as err:
        shown = called.encode("utf-8", "backslashreplace").decode()
        raise ValueError(
            f"`source` must have names in UTF-8; got {shown} at {source}. Rename it, "
            "for example with convmv."
        ) from err
    # In a folder a backslash may be part of a name, but nobody means it.
    parts = unicodedata.normalize("NFC", called).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in {"", "."})


def _hidden(name: str) -> bool:
    return any(
        part.startswith(".") or part.lower() in CLUTTER for part in name.split("/")
    )


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    for stop in range(1, len(parts)):
        yield "/".join(parts[:stop])


def _no_file(source: Path, name: str, what: str) -> ValueError:
    return ValueError(
        f"`source` must hold files and folders; got {what} at {source}: {name}. "
        "Remove it, or put the file itself there."
    )


def _too_large(source: Path, name: str, size: int) -> ValueError:
    return ValueError(
        f"`source` must hold files of at most {MAX_FILE_BYTES} bytes; got {size} at "
        f"{source}: {name}. Make it smaller or remove it."
    )
