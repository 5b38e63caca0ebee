"""Combined runs for other tools: netCDF, Zarr, CSV, Parquet, with units and names.

netCDF and Zarr hold everything over ``run`` and ``eval``, provenance included. CSV
and Parquet hold one row an evaluation. Updates, scores and parameters stay in the runs'
stores.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pipeline.atomic import partial_directory, publish
from pipeline.compare import loaded
from pipeline.outputs import may_write, refuse_store
from pipeline.places import given_path
from pipeline.whole_file import write_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "check_export", "evaluation_table", "write_export"]

_NOT_IN_TABLES = ("data_sha256", "versions", "hardware", "config", "store", "git_dirty")
_RUN_FIGURES = ("eval_time_s", "total_time_s", "n_reruns", "n_workers")
_KINDS = {".nc": "netcdf", ".csv": "csv", ".parquet": "parquet"}
_DESCRIBING = ("units", "long_name", "description")


def write_export(ds: xr.Dataset, path: str | Path) -> tuple[Path, ...]:
    """Write combined runs in the format that ``path`` ends with, whole or not at all.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    path : ends with ``.nc``, ``.zarr``, ``.csv`` or ``.parquet``. Beside ``NAME.csv``
        goes ``NAME.columns.csv`` with the units and long names of its columns, which
        the other formats carry in themselves.

    Returns
    -------
    The files that were written.

    Raises
    ------
    ValueError — if the format is unknown.
    FileExistsError — if something is there that is no such export, or a Zarr store.
    """
    write = FORMATS[check_export(path)]
    path = Path(path).expanduser()
    names = [str(name) for name in ds if {*ds[name].dims} <= {"run", "eval"}]
    return write(loaded(ds[names].assign_attrs(ds.attrs)), path)


def check_export(path: str | Path) -> str:
    """Return the format that a path stands for, before any work is done for it.

    Raises
    ------
    ValueError — if there is none such.
    FileExistsError — if a Zarr store is there, or a file that is no such export.
    """
    path = given_path(path, "export")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"`export` must end with {', '.join(FORMATS)}; got {str(path)!r}. "
            "Rename it."
        )
    if suffix in _KINDS:
        may_write(path, _KINDS[suffix], "export")
    if suffix == ".csv":
        may_write(_about(path), "csv", "export")
    refuse_store(path, "export")
    if suffix == ".zarr" and path.exists():
        raise FileExistsError(
            f"`export` must not replace a Zarr store, which may be a run; got {path}. "
            "Choose another name, or remove it first."
        )
    return suffix


def evaluation_table(ds: xr.Dataset) -> pd.DataFrame:
    """Return one row an evaluation, with what its run was; padding is left out.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.

    Returns
    -------
    DataFrame — the run's coordinates (not its whole configuration, versions and
    hardware), ``eval``, the variables over ``eval``, and the run's own figures.
    """
    import pandas as pd

    ds = loaded(ds, [str(n) for n in ds if ds[n].dims == ("run", "eval")])
    lengths = ds["n_evals"].values
    run = np.repeat(np.arange(ds.sizes["run"]), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    columns: dict[str, np.ndarray] = {}
    for name in ds.coords:
        if ds[name].dims == ("run",) and name not in _NOT_IN_TABLES:
            columns[str(name)] = ds[name].values[run]
    columns["eval"] = position
    for name in ds:
        if ds[name].dims == ("run", "eval"):
            columns[str(name)] = ds[name].values[run, position]
    for name in (*_RUN_FIGURES, "mean_staleness"):
        columns[f"run_{name}"] = ds[name].values[run]
    return pd.DataFrame(columns)


def _write_netcdf(ds: xr.Dataset, path: Path) -> tuple[Path, ...]:
    padding = {
        name: {"_FillValue": -1}
        for name in ds
        if ds[name].dims == ("run", "eval") and ds[name].dtype.kind == "i"
    }
    plain = _plain(ds)
    content = plain.to_netcdf(engine="netcdf4", format="NETCDF4", encoding=padding)
    return (write_whole(path, bytes(content)),)


def _write_zarr(ds: xr.Dataset, path: Path) -> tuple[Path, ...]:
    plain = _plain(ds)
    texts = [name for name in plain.coords if plain[name].dtype.kind == "U"]
    for name in texts:  # the text type that Zarr v3 specifies
        plain[name] = plain[name].astype(np.dtypes.StringDType())
    with partial_directory(path) as partial:
        plain.to_zarr(partial, zarr_format=3, consolidated=False)
        publish(partial, path)
    return (path,)


def _plain(ds: xr.Dataset) -> xr.Dataset:
    """Return the dataset with attributes that files can hold, and no indexes."""
    texts = {
        key: "; ".join(value) if isinstance(value, list) else value
        for key, value in ds.attrs.items()
    }
    return ds.drop_indexes([str(name) for name in ds.xindexes]).assign_attrs(texts)


def _write_csv(ds: xr.Dataset, path: Path) -> tuple[Path, ...]:
    import pandas as pd

    table = _inert(evaluation_table(ds))
    about = _column_attributes(ds, table)
    columns = pd.DataFrame(
        [{"column": name, **about[name]} for name in table.columns],
        columns=["column", *_DESCRIBING],
    )
    return (
        write_whole(path, table.to_csv(index=False, lineterminator="\n")),
        write_whole(
            _about(path),
            columns.to_csv(index=False, lineterminator="\n"),
        ),
    )


def _inert(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table no text of which a spreadsheet takes for a formula.

    Such text gets an apostrophe in front, as OWASP advises for CSV; numbers do not.
    """
    return table.map(lambda cell: _as_text(cell) if isinstance(cell, str) else cell)


def _as_text(cell: str) -> str:
    cell = cell.replace("\r", "\n")  # which is quoted, and a bare one is not
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\n")) else cell


def _about(path: Path) -> Path:
    """Where the units and long names of a table's columns go."""
    return path.with_suffix(".columns.csv")


def _write_parquet(ds: xr.Dataset, path: Path) -> tuple[Path, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = evaluation_table(ds)
    about = _column_attributes(ds, frame)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    fields = [field.with_metadata(about[field.name]) for field in table.schema]
    texts = {key: str(value) for key, value in ds.attrs.items()}
    schema = pa.schema(fields, {**(table.schema.metadata or {}), **texts})
    file = io.BytesIO()
    pq.write_table(table.cast(schema), file)
    return (write_whole(path, file.getvalue()),)


def _column_attributes(
    ds: xr.Dataset, table: pd.DataFrame
) -> Mapping[str, dict[str, str]]:
    """Return units, long name and description of every column, where it has them."""
    out = {}
    for column in table.columns:
        name = column if column in ds.variables else column.removeprefix("run_")
        attrs: Mapping[Any, Any] = ds[name].attrs if name in ds.variables else {}
        out[column] = {key: str(attrs[key]) for key in _DESCRIBING if key in attrs}
    out["eval"] = {"units": "1", "long_name": "position of the evaluation, from 0"}
    return out


Writer = Callable[[xr.Dataset, Path], tuple[Path, ...]]
#: How a file ends -> what writes it.
FORMATS: dict[str, Writer] = {
    ".nc": _write_netcdf,
    ".zarr": _write_zarr,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
