"""The data that a run was trained on, wherever they lie by now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data_store import DataStore, open_store, read_attributes
from pipeline.places import resolve_store
from pipeline.replacing import former_contents
from pipeline.store import ensure_store

if TYPE_CHECKING:
    import xarray as xr


def data_of(ds: xr.Dataset) -> DataStore:
    """Open the data store that a run was trained on.

    Looked for where it was, as a relative path from here and from the folders around
    the run's store, and under the data's name; only the same content is taken.

    Parameters
    ----------
    ds : a run's dataset; its attribute ``store`` says where it lies.

    Raises
    ------
    FileNotFoundError — if there is none at all.
    ValueError — if there are only others.
    """
    config = json.loads(ds.attrs["config"])
    return same_data(
        ds.attrs["run_id"], ds.attrs["data_sha256"], _places(ds), config["dataset"]
    )


def same_data(
    run_id: str, content_sha256: str, places: Iterable[Path], name: str
) -> DataStore:
    """Open the first data store among some places that has a run's content.

    Parameters
    ----------
    places : where it may lie; those that do not exist are passed over.
    name : the data set as the run's settings name it: the last place, where the
        bundled data are made if they are not there yet.

    Raises
    ------
    FileNotFoundError, ValueError — see ``data_of``.
    """
    others = []
    for path in places:
        if not path.exists():
            continue
        if _content(path) == content_sha256:
            return open_store(path)
        others.append(path)
    last = ensure_store(name) if not others else resolve_store(name)
    if last.exists() and _content(last) == content_sha256:
        return open_store(last)
    found = (others or [last])[0]
    newer = content_sha256 in former_contents(found)
    why = ", which a newer version read from the same files" if newer else ""
    raise ValueError(
        f"`dataset` must be the one that {run_id} was trained on; got another content "
        f"at {found}{why}. Ingest the original data again; "
        "`ndcao evaluate` scores on other data with --dataset."
    )


def _places(ds: xr.Dataset) -> Iterator[Path]:
    recorded = Path(ds.attrs["data_store"])
    if "data_store_absolute" in ds.attrs:
        yield Path(ds.attrs["data_store_absolute"])
    yield recorded
    if not recorded.is_absolute() and "store" in ds.attrs:
        for folder in list(Path(ds.attrs["store"]).resolve().parents)[:3]:
            yield folder / recorded  # results/<experiment>/<run>.zarr, under a home


def _content(path: Path) -> str | None:
    try:
        return str(read_attributes(path).get("content_sha256"))
    except ValueError:
        return None
