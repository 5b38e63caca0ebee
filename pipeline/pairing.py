"""Which runs belong together: the same seed, and the same of all else that varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from pipeline.estimates import LeftOut

__all__ = ["Pairs", "Side", "pair_runs", "runs_of"]

#: Runs by their positions, or by what their coordinates must be.
Side = Sequence[int] | Mapping[str, Any]
_IDENTITY = ("algorithm", "mode", "dataset", "model", "partition")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Runs in pairs: position i of ``first`` and of ``second`` belong together."""

    name: str  # "async − sync"
    first: tuple[int, ...]
    second: tuple[int, ...]
    seeds: tuple[int, ...]
    strata: tuple[str, ...]  # the configuration that both share
    left_out: tuple[LeftOut, ...]

    def __len__(self) -> int:
        return len(self.seeds)


def runs_of(ds: xr.Dataset, side: Side) -> tuple[int, ...]:
    """Return the positions of the runs of one side, in order.

    Raises
    ------
    ValueError — if no run fits, or a coordinate is unknown.
    """
    if not isinstance(side, Mapping):
        chosen = [int(run) for run in side]
    else:
        fits = np.ones(ds.sizes["run"], dtype=bool)
        for name, value in side.items():
            if name not in ds.coords or ds[name].dims != ("run",):
                raise ValueError(
                    f"`{name}` must be a coordinate over run; got none. Choose of "
                    f"{', '.join(_IDENTITY)} and those of `config_varies`."
                )
            fits &= ds[name].values == value
        chosen = np.flatnonzero(fits).tolist()
    if not chosen:
        raise ValueError(
            f"a side must have at least one run; got none for {side}. "
            "Look at `summary_table(ds)`."
        )
    return tuple(chosen)


def pair_runs(ds: xr.Dataset, first: Side, second: Side, name: str = "") -> Pairs:
    """Pair the runs of two sides over their common seeds.

    A pair has the same seed and the same of everything else that varies on both sides
    (data set, model, partition, algorithm, settings): that is its stratum. What differs
    only from one side to the other is what is compared.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    first, second : ``{"mode": "async"}``, or positions of runs.
    name : of the comparison; by default made of the two sides.

    Returns
    -------
    Pairs — ordered by stratum and seed; ``left_out`` names every run without partner.

    Raises
    ------
    ValueError — if a side has no runs, a run is on both, or two runs of one side have
    the same seed and stratum.
    """
    sides = runs_of(ds, first), runs_of(ds, second)
    both = sorted({*sides[0]} & {*sides[1]})
    if both:
        names = ", ".join(str(ds["run_id"].values[run]) for run in both)
        raise ValueError(
            f"a run must be on one side; got {names} on both. Choose sides apart."
        )
    fields = [
        field
        for field in (*_IDENTITY, *ds.attrs.get("config_varies", ()))
        if all(len({repr(v) for v in ds[field].values[list(s)]}) > 1 for s in sides)
    ]
    keyed = [_keyed(ds, side, fields) for side in sides]
    common = sorted({*keyed[0]} & {*keyed[1]})
    left_out = []
    for own, other in (keyed, keyed[::-1]):
        for stratum, seed in sorted(own.keys() - other.keys()):
            of = f" of {stratum}" if stratum else ""
            run_id = str(ds["run_id"].values[own[stratum, seed]])
            left_out.append(LeftOut(run_id, f"no partner with seed {seed}{of}"))
    return Pairs(
        name or f"{_side_name(first, 'first')} vs {_side_name(second, 'second')}",
        tuple(keyed[0][key] for key in common),
        tuple(keyed[1][key] for key in common),
        tuple(seed for _, seed in common),
        tuple(stratum for stratum, _ in common),
        tuple(left_out),
    )


def _keyed(
    ds: xr.Dataset, runs: Sequence[int], fields: Sequence[str]
) -> dict[tuple[str, int], int]:
    out: dict[tuple[str, int], int] = {}
    for run in runs:
        stratum = ", ".join(
            f"{field.removeprefix('config.')}={ds[field].values[run]}"
            for field in fields
        )
        key = stratum, int(ds["seed"].values[run])
        if key in out:
            raise ValueError(
                "a side must have one run a seed and configuration; got "
                f"{ds['run_id'].values[out[key]]} and {ds['run_id'].values[run]}. "
                f"{_advice(ds, out[key], run)}"
            )
        out[key] = run
    return out


def _advice(ds: xr.Dataset, one: int, other: int) -> str:
    fields = (*_IDENTITY, *ds.attrs.get("config_varies", ()))
    differing = [
        field
        for field in fields
        if repr(ds[field].values[one]) != repr(ds[field].values[other])
    ]
    if not differing:
        return "They are one run, trained more than once: name one of them."
    return f"Choose one value of {', '.join(differing)}."


def _side_name(side: Side, otherwise: str) -> str:
    if not isinstance(side, Mapping):
        return otherwise
    return " ".join(str(value) for value in side.values())
