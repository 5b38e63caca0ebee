"""Which methods of a comparison are held against which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xarray as xr

from pipeline.series import Group

__all__ = ["BASELINES", "Sides", "sides_of"]

#: What runs without gradients are held against.
BASELINES = ("sgd", "adam")
_SHARED = ("dataset", "model", "partition")


@dataclass(frozen=True, slots=True)
class Sides:
    """Two groups to compare; ``about_modes``: async and sync of one algorithm."""

    first: Group
    second: Group
    names: tuple[str, str]
    about_modes: bool

    @property
    def title(self) -> str:
        """The labels of both groups."""
        return f"{self.first.label} against {self.second.label}"


def sides_of(ds: xr.Dataset, groups: Sequence[Group]) -> Iterator[Sides]:
    """Yield each algorithm's async against sync, then gradient-free against baselines.

    Both sides of the first kind share data set, model, partition and every setting that
    varies on both; those of the second share data set and model.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    groups : from `pipeline.series.group_runs`.
    """
    families: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        key = _values(ds, group, (*_SHARED, "algorithm"))
        families.setdefault(key, []).append(group)
    for family in families.values():
        yield from _modes(ds, family)
    for baseline in groups:
        if _values(ds, baseline, ("algorithm",))[0] not in BASELINES:
            continue
        for group in groups:
            used = ds["total_n_gradient_evals"].values[list(group.runs)]
            shared = [_values(ds, g, ("dataset", "model")) for g in (group, baseline)]
            if not (used > 0).any() and shared[0] == shared[1]:
                names = tuple(
                    " ".join(_values(ds, g, ("algorithm", "mode")))
                    for g in (group, baseline)
                )
                yield Sides(group, baseline, (names[0], names[1]), about_modes=False)


def _modes(ds: xr.Dataset, family: Sequence[Group]) -> Iterator[Sides]:
    modes = {
        mode: [g for g in family if _values(ds, g, ("mode",)) == (mode,)]
        for mode in ("async", "sync")
    }
    vary_on_both = [
        field
        for field in ds.attrs.get("config_varies", ())
        if all(len({_values(ds, g, (field,)) for g in m}) > 1 for m in modes.values())
    ]
    for first in modes["async"]:
        for second in modes["sync"]:
            if _values(ds, first, vary_on_both) == _values(ds, second, vary_on_both):
                yield Sides(first, second, ("async", "sync"), about_modes=True)


def _values(ds: xr.Dataset, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(ds[name].values[group.runs[0]]) for name in names)
