"""Known data sets from their canonical addresses, for machines that have a network."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.atomic import partial_directory
from pipeline.sources.known import (
    CIFAR10_ARCHIVE_MD5,
    KNOWN,
    KnownFile,
    checksum_error,
)
from pipeline.sources.streams import md5_of, open_stream

TIMEOUT_S = 30.0

Progress = Callable[[str, int, int], None]


class _Bar:
    """What pooch moves along instead of a bar of its own."""

    def __init__(self, stage: str, progress: Progress | None) -> None:
        self.total = 0  # set by pooch
        self._stage = stage
        self._done = 0
        self._progress = progress

    def update(self, n_bytes: int) -> None:
        """Add bytes."""
        self._done += n_bytes
        if self._progress is not None:
            self._progress(self._stage, self._done, self.total)

    def reset(self) -> None:
        """Go back to zero, as pooch does before it adds the total at the end."""
        self._done = 0

    def close(self) -> None:
        """Nothing to close."""


def download(name: str, folder: Path, progress: Progress | None = None) -> Path:
    """Fetch the raw files of a known data set, unless they are there and right.

    Parameters
    ----------
    name : str — a key of ``KNOWN``.
    folder : Path — files land in ``folder/<name>`` and stay, so that ingesting again
        needs no network.
    progress : callable or None — called with ("download FILE", bytes done, bytes in
        all; 0 = unknown).

    Returns
    -------
    Path — what the reader of this data set takes as its source.

    Raises
    ------
    ConnectionError — if a file can be had from none of its addresses.
    ValueError — if what was fetched is not the published file; it is removed.
    """
    target = folder / name
    for file in KNOWN[name].files:
        path = target / Path(file.urls[0]).name
        if not path.is_file() or _wrong(name, file, path) is not None:
            path.unlink(missing_ok=True)
            _fetch(name, file, path, _Bar(f"download {path.name}", progress))
            if (error := _wrong(name, file, path)) is not None:
                path.unlink()
                raise error
    archive = target / Path(KNOWN[name].files[0].urls[0]).name
    return archive if len(KNOWN[name].files) == 1 else target


def _fetch(name: str, file: KnownFile, path: Path, bar: Any) -> None:
    """Download to ``path``, in one step, from the first address that answers."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # it would print the hash of every download
    failures = []
    try:
        for url in file.urls:
            downloader = pooch.HTTPDownloader(
                progressbar=bar, chunk_size=2**16, timeout=TIMEOUT_S
            )
            try:
                with partial_directory(path) as folder:
                    pooch.retrieve(
                        url,
                        known_hash=None,  # of the gzip wrapping: the content is checked
                        fname=path.name,
                        path=folder,
                        downloader=downloader,
                    )
                    (folder / path.name).replace(path)
            except (OSError, ValueError) as err:  # requests raises OSError
                failures.append(f"{url} ({_reason(err)})")
            else:
                return
    finally:
        logger.setLevel(level)
    raise ConnectionError(
        f"`{name}` must be downloaded or read from files; got no answer from "
        f"{', '.join(failures)}. On a machine with a network fetch "
        f"{', '.join(Path(f.urls[0]).name for f in KNOWN[name].files)} from there, and "
        f"name {'the file' if len(KNOWN[name].files) == 1 else 'their folder'}: "
        f"ndcao ingest {name} --from PATH. The set `digits` needs no network."
    )


def _reason(err: Exception) -> str:
    """Return the innermost cause's text: the rest repeats the address."""
    cause: BaseException = err
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    return f"{type(err).__name__}: {cause}"


def _wrong(name: str, file: KnownFile, path: Path) -> ValueError | None:
    """Return the error for a file that is not the published one, or None."""
    if not file.sha256:
        got = md5_of(path)
        return (
            None
            if got == CIFAR10_ARCHIVE_MD5
            else checksum_error(
                name, f"MD5 {CIFAR10_ARCHIVE_MD5}", f"MD5 {got}", str(path)
            )
        )
    try:
        with open_stream(path) as stream:
            stream.drain()
            got = stream.sha256
    except ValueError as err:
        return err
    if got == file.sha256:
        return None
    return checksum_error(name, f"sha256 {file.sha256}", f"sha256 {got}", str(path))
