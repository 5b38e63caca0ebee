from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alignment import BUDGETS, State, align, evaluations, last_budgets
from pipeline.compare import combine_runs

NAN = float("nan")


def runs(*curves, status="complete"):
    """Return combined runs in memory with given (steps, accuracies) each."""
    statuses = [status] * len(curves) if isinstance(status, str) else status
    length = max(len(x) for x, _ in curves)
    x = np.full((len(curves), length), -1)
    y = np.full((len(curves), length), NAN)
    for i, (steps, values) in enumerate(curves):
        x[i, : len(steps)] = steps
        y[i, : len(values)] = values
    over = ("run", "eval")
    return xr.Dataset(
        {
            "step": (over, x),
            "n_loss_evals": (over, np.where(x > 0, 0, x)),
            "test_accuracy": (over, y),
            "n_evals": ("run", [len(steps) for steps, _ in curves]),
        },
        {"status": ("run", statuses), "run_id": ("run", list("abcdef"[: len(curves)]))},
    )


def test_align__holds_the_last_value_and_never_looks_ahead():
    ds = runs(([0, 10, 20], [0.1, 0.5, 0.9]))
    at = [0, 5, 9.9, 10, 15, 20]
    aligned = align(ds, "test_accuracy", "update", at)
    np.testing.assert_array_equal(
        aligned["test_accuracy"][0], [0.1, 0.1, 0.1, 0.5, 0.5, 0.9]
    )
    assert (aligned["state"] == State.WITHIN).all()


def test_align__is_nan_before_the_first_evaluation():
    aligned = align(runs(([5, 10], [0.1, 0.5])), "test_accuracy", at=[4.9])
    assert np.isnan(aligned["test_accuracy"]).all()
    assert aligned["state"].item() == State.BEFORE


def test_align__carries_on_only_a_run_that_used_its_own_budget():
    curve = ([0, 10], [0.1, 0.5])
    ds = runs(curve, curve, curve, status=["complete", "diverged", "interrupted"])
    aligned = align(ds, "test_accuracy", at=[10, 11])
    np.testing.assert_array_equal(aligned["test_accuracy"][:, 0], [0.5] * 3)
    np.testing.assert_array_equal(aligned["test_accuracy"][:, 1], [0.5, NAN, NAN])
    early = State.ENDED_EARLY
    assert aligned["state"][:, 1].values.tolist() == [State.CARRIED, early, early]


def test_align__keeps_the_nan_of_a_run_that_diverged():
    ds = runs(([0, 10, 20], [0.1, 0.5, NAN]), status="diverged")
    aligned = align(ds, "test_accuracy", at=[10, 20])
    np.testing.assert_array_equal(aligned["test_accuracy"][0], [0.5, NAN])


def test_align__has_no_value_for_a_run_that_does_not_use_the_budget():
    ds = runs(([0, 10], [0.1, 0.5]))
    aligned = align(ds, "test_accuracy", "loss_values", [0, 10])
    assert np.isnan(aligned["test_accuracy"]).all()
    assert (aligned["state"] == State.UNUSED).all()
    assert np.isnan(last_budgets(ds, "loss_values")).all()


def test_align__names_its_budget_and_its_units(tmp_path, write_demo_runs):
    ds = combine_runs(write_demo_runs(tmp_path))
    for axis in BUDGETS:
        aligned = align(ds, "test_accuracy", axis.key)
        assert aligned.attrs["budget"] == axis.key
        assert aligned["budget"].attrs["long_name"] == axis.label
        units = ds[axis.variable].attrs["units"]
        assert (
            aligned["budget"].attrs["units"] == aligned.attrs["budget_units"] == units
        )
        assert aligned["test_accuracy"].attrs == ds["test_accuracy"].attrs
    assert aligned["state"].attrs["flag_meanings"].split()[State.CARRIED] == "carried"
    assert aligned.sel(mode="async").sizes["run"] == 2


def test_align__default_grid_is_where_runs_were_evaluated_and_is_bounded():
    short, long = ([0, 3], [0, 1]), (np.arange(5000), np.linspace(0, 1, 5000))
    np.testing.assert_array_equal(align(runs(short), "test_accuracy")["budget"], [0, 3])
    grid = align(runs(short, long), "test_accuracy")["budget"].values
    assert len(grid) == 400
    assert (grid[0], grid[-1]) == (0, 4999)


def test_align__refuses_what_it_does_not_know():
    ds = runs(([0, 10], [0.1, 0.5]))
    with pytest.raises(ValueError, match=r"`metric` must be of step.*got 'accuracy'"):
        align(ds, "accuracy")
    with pytest.raises(ValueError, match=r"`budget` must be of update.*got 'epochs'"):
        align(ds, "test_accuracy", "epochs")
    with pytest.raises(ValueError, match="`at` must be finite"):
        align(ds, "test_accuracy", at=[NAN])


def test_evaluations__read_lazy_runs_at_their_own_length(
    tmp_path, synthetic_run, write_run
):
    paths = [write_run(synthetic_run(seed=n, n_evals=n), tmp_path) for n in (3, 5)]
    found = evaluations(combine_runs(paths), "test_accuracy", "update")
    assert [len(x) for x, _ in found] == [3, 5]
    assert all(np.isfinite(y).all() for _, y in found)


values = st.floats(-1, 1, width=32)


@st.composite
def curves(draw):
    steps = sorted(draw(st.sets(st.integers(0, 50), min_size=2, max_size=8)))
    return steps, draw(st.lists(values, min_size=len(steps), max_size=len(steps)))


@settings(deadline=None, max_examples=200)
@given(curve=curves(), later=curves(), at=st.floats(-1, 60))
def test_align__value_depends_only_on_evaluations_up_to_the_budget(curve, later, at):
    x, y = np.array(curve[0]), np.array(curve[1])
    past = x <= at
    future = np.array(later[0]) + int(np.ceil(max(at, 0))) + 1
    other = (
        np.concatenate([x[past], future]),
        np.concatenate([y[past], later[1]]),
    )
    first = align(runs(curve), "test_accuracy", at=[at])["test_accuracy"].item()
    second = align(runs(other), "test_accuracy", at=[at])["test_accuracy"].item()
    np.testing.assert_array_equal(first, second)
    expected = y[past][-1] if past.any() else NAN
    np.testing.assert_array_equal(first, expected)
