"""Curves of runs on equal budgets: what each had reached by then, never ahead."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import xarray as xr

from pipeline.compare import loaded
from pipeline.schema import VARIABLES
from pipeline.series import AXES, FINISHED, Axis

__all__ = ["BUDGETS", "State", "align", "budget_named", "evaluations", "last_budgets"]

#: The budgets that runs can be equal in.
BUDGETS = AXES
_MAX_GRID = 400


class State(IntEnum):
    """Where a run stands at a budget, and so what its value there is."""

    WITHIN = 0  # the last evaluation at or before the budget
    CARRIED = 1  # beyond the end of a run that used its own budget: its last value
    BEFORE = 2  # before the first evaluation: NaN
    ENDED_EARLY = 3  # beyond the end of a run that diverged or was stopped: NaN
    UNUSED = 4  # the run does not use that budget at all: NaN


def align(
    ds: xr.Dataset,
    metric: str,
    budget: str = "update",
    at: float | Sequence[float] | np.ndarray | None = None,
) -> xr.Dataset:
    """Return each run's value of a metric at the same budgets.

    The value at a budget is that of the last evaluation at or before it, so nothing
    looks ahead and nothing is interpolated. Beyond its end a run that used its own
    budget (status ``complete``) keeps its last value, and ``state`` says so; one that
    ended otherwise has NaN there.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.combine_runs`.
    metric : a variable over ``eval``, such as ``test_accuracy`` or ``wall_time_s``.
    budget : ``update`` (per node), ``samples`` (scored), ``loss_values``, ``bytes`` or
        ``wall_time``.
    at : budgets, finite, in the budget's own units. The default is every budget at
        which a run was evaluated, thinned evenly to at most 400.

    Returns
    -------
    Dataset over (run, budget): the metric, float64, and ``state``, a `State`. The
    coordinate ``budget`` has the name and units of the budget; so do the attributes.

    Raises
    ------
    ValueError — if the metric or the budget is unknown, or ``at`` is not finite.
    """
    axis = budget_named(budget)
    spec = VARIABLES.get(metric)
    if spec is None or spec.dims != ("eval",):
        known = ", ".join(v.name for v in VARIABLES.values() if v.dims == ("eval",))
        raise ValueError(
            f"`metric` must be of {known}; got {metric!r}. Pick one of them."
        )
    curves = evaluations(ds, metric, budget)
    grid = _grid(curves) if at is None else np.atleast_1d(np.asarray(at, "float64"))
    if not np.isfinite(grid).all():
        raise ValueError(
            f"`at` must be finite budgets; got {at}. Leave out what is not known."
        )
    values = np.full((len(curves), len(grid)), np.nan)
    states = np.empty(values.shape, dtype="int8")
    for run, (x, y) in enumerate(curves):
        finished = ds["status"].values[run] == FINISHED
        states[run] = _states(x, grid, finished)
        held = states[run] <= State.CARRIED
        values[run, held] = y[np.searchsorted(x, grid[held], side="right") - 1]
    units = VARIABLES[axis.variable].units
    out = ds.drop_vars(ds.data_vars).assign(
        {
            metric: (("run", "budget"), values, spec.attrs),
            "state": (("run", "budget"), states, _state_attributes()),
        }
    )
    coordinate = {"long_name": axis.label, "units": units, "variable": axis.variable}
    return out.assign_coords(budget=("budget", grid, coordinate)).assign_attrs(
        title=f"{spec.long_name} at equal budgets", budget=budget, budget_units=units
    )


def evaluations(
    ds: xr.Dataset, metric: str, budget: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each run's (budgets, values), both (n_evals,), in order of the budget.

    Both are empty for a run that does not use the budget: back-propagation scores no
    loss values.
    """
    axis = budget_named(budget)
    ds = loaded(ds, [axis.variable, metric])
    lengths = ds["n_evals"].values
    out = []
    for run, n_evals in enumerate(lengths):
        x = np.asarray(ds[axis.variable].values[run, :n_evals], dtype="float64")
        y = np.asarray(ds[metric].values[run, :n_evals], dtype="float64")
        used = (x > 0).any() or n_evals == 1
        order = np.argsort(x, kind="stable") if used else np.empty(0, dtype=int)
        out.append((x[order], y[order]))
    return out


def last_budgets(ds: xr.Dataset, budget: str) -> np.ndarray:
    """Return how much of a budget each run had used at its last evaluation, (run,).

    NaN for a run that does not use it.
    """
    variable = budget_named(budget).variable
    curves = evaluations(ds, variable, budget)
    return np.array([x[-1] if len(x) else np.nan for x, _ in curves])


def budget_named(key: str) -> Axis:
    """Return the budget with that key.

    Raises
    ------
    ValueError — if there is none such.
    """
    for axis in BUDGETS:
        if axis.key == key:
            return axis
    known = ", ".join(axis.key for axis in BUDGETS)
    raise ValueError(f"`budget` must be of {known}; got {key!r}. Pick one of them.")


def _states(x: np.ndarray, grid: np.ndarray, finished: bool) -> np.ndarray:
    if not len(x):
        return np.full(len(grid), State.UNUSED, dtype="int8")
    beyond = State.CARRIED if finished else State.ENDED_EARLY
    states: np.ndarray = np.full(len(grid), State.WITHIN, dtype="int8")
    states[grid < x[0]] = State.BEFORE
    states[grid > x[-1]] = beyond
    return states


def _grid(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    if len(grid) <= _MAX_GRID:
        return grid
    kept = np.linspace(0, len(grid) - 1, _MAX_GRID).round().astype(int)
    return np.asarray(grid[kept])


def _state_attributes() -> dict[str, object]:
    return {
        "long_name": "where the run stands at the budget",
        "flag_values": np.array([state.value for state in State], dtype="int8"),
        "flag_meanings": " ".join(state.name.lower() for state in State),
    }
