"""Where data stores are, by name; paths as users write them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

LONGEST_NAME = 255  # bytes, on every file system in use
MAX_NAME_BYTES = 120  # file systems allow 255, and a run's name has more parts
_NO_NAMES = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves, line separators


def given_path(path: str | Path, setting: str) -> Path:
    """Return a path that a user named; ``~`` is the user's home.

    Raises
    ------
    ValueError — if it is empty, as of a shell's unset variable, cannot be a name, or
    names a home that nobody has.
    """
    if not str(path).strip():
        raise ValueError(
            f"`{setting}` must not be empty; got {str(path)!r}. Is a variable unset?"
        )
    _check_names(Path(path), setting)
    try:
        return Path(path).expanduser()
    except RuntimeError as err:
        raise ValueError(
            f"`{setting}` must begin with ~ or the ~name of a user of this machine; "
            f"got {path}. Write the path without it."
        ) from err


def _check_names(path: Path, setting: str) -> None:
    """Raise unless a file system can hold such names at all."""
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=1)
    except UnicodeEncodeError:
        longest = 0
    if not 0 < longest <= LONGEST_NAME or "\0" in str(path):
        raise ValueError(
            f"`{setting}` must have names of 1 to {LONGEST_NAME} bytes that a file "
            f"system can hold; got {str(path)[:LONGEST_NAME]!r}. Name it otherwise."
        )


def wrong_name(name: str) -> str:
    """Return what keeps a name from being part of a file's name; "" if nothing does.

    Names of data sets are part of the names of runs, and stores come from anywhere.
    """
    if not name.strip():
        return "nothing"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"more than {MAX_NAME_BYTES} bytes"
    for character in name:
        if character in "/\\" or unicodedata.category(character) in _NO_NAMES:
            return f"a {character!r} in it"
    return ""


def resolve_store(name_or_path: str | Path, home: Path | None = None) -> Path:
    """Return the path that a data set's name, or a path, stands for.

    A name without a folder and without ``.zarr`` is ``data/<name>.zarr`` under ``home``
    (default ``$NDCAO_HOME``, else the current folder). Nothing is opened.
    """
    path = given_path(name_or_path, "dataset")
    if len(path.parts) != 1 or path.suffix == ".zarr":
        return path
    return data_folder(home) / f"{path.name}.zarr"


def data_folder(home: Path | None = None) -> Path:
    """Return the folder of data stores: ``<home>/data``, see :func:`resolve_store`."""
    if home is None:
        home = Path(os.environ.get("NDCAO_HOME") or ".").expanduser()
    return home / "data"
