"""Where data stores are, by name."""

from __future__ import annotations

import os
from pathlib import Path


def resolve_store(name_or_path: str | Path, home: Path | None = None) -> Path:
    """Return the path that a data set's name, or a path, stands for.

    A name without a folder and without ``.zarr`` is ``data/<name>.zarr`` under ``home``
    (default ``$NDCAO_HOME``, else the current folder). Nothing is opened.
    """
    path = Path(name_or_path).expanduser()
    if len(path.parts) != 1 or path.suffix == ".zarr":
        return path
    return data_folder(home) / f"{path.name}.zarr"


def data_folder(home: Path | None = None) -> Path:
    """Return the folder of data stores: ``<home>/data``, see :func:`resolve_store`."""
    if home is None:
        home = Path(os.environ.get("NDCAO_HOME") or ".").expanduser()
    return home / "data"
