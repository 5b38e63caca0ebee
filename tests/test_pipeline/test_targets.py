from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from pipeline.compare import combine_runs
from pipeline.statistics import paired_difference, paired_ratio
from pipeline.targets import (
    first_reached,
    median_time,
    restricted_difference,
    time_ratio,
)

INF, NAN = math.inf, math.nan


def reach(*times):
    """Return what `first_reached` does: a time, or ``-c`` for one watched until c."""
    reached = [NAN if t < 0 or t == INF else t for t in times]
    watched = [abs(t) for t in times]
    attrs = {"units": "s", "long_name": "Wall time (s) to accuracy ≥ 0.9"}
    return xr.Dataset(
        {
            "reached_at": ("run", np.array(reached), attrs),
            "watched_until": ("run", np.array(watched), attrs),
        },
        {"run_id": ("run", [f"run-{i}" for i in range(len(times))])},
        {"target": 0.9},
    )


def ends(estimate):
    return [estimate.low, estimate.high]


@pytest.fixture
def three(tmp_path, synthetic_run, write_run):
    """Return runs that reach 0.5 at step 20, not at all, and never."""
    steps = {"reached": [0.1, 0.4, 0.6, 0.4], "below": [0.1, 0.2, 0.3, 0.4]}
    paths = []
    for seed, (name, status) in enumerate(
        (("reached", "complete"), ("below", "complete"), ("below", "diverged"))
    ):
        run = synthetic_run(seed=seed, n_evals=4, attrs={"status": status})
        run["val_accuracy"][:] = steps[name]
        run["val_loss"][:] = 1 - run["val_accuracy"]
        paths.append(write_run(run, tmp_path))
    return combine_runs(paths)


def test_first_reached__is_the_first_evaluation_that_shows_it(three):
    found = first_reached(three, "val_accuracy", 0.5)
    np.testing.assert_array_equal(found["reached_at"], [20, NAN, NAN])
    np.testing.assert_array_equal(found["watched_until"], [30, 30, INF])
    losses = first_reached(three, "val_loss", 0.5)
    np.testing.assert_array_equal(losses["reached_at"], found["reached_at"])


def test_first_reached__names_budget_target_and_units(three):
    found = first_reached(three, "val_accuracy", 0.5, "wall_time")
    assert found["reached_at"].attrs["units"] == "s"
    name = found["reached_at"].attrs["long_name"]
    assert name == "Wall time (s) to validation accuracy ≥ 0.5"
    assert (found.attrs["budget"], found.attrs["target"]) == ("wall_time", 0.5)


def test_first_reached__refuses_test_data_and_open_targets(three):
    with pytest.raises(ValueError, match="Test data are for reading results"):
        first_reached(three, "test_accuracy", 0.5)
    with pytest.raises(ValueError, match="`target` must be finite"):
        first_reached(three, "val_accuracy", NAN)


def test_median_time__without_censoring_is_the_middle_run():
    found = median_time(reach(5, 1, 3, 4, 2), range(5))
    assert found.estimate == 3
    assert found.notes == ("5 of 5 runs reached it",)


def test_median_time__counts_runs_that_never_reach_the_target():
    found = median_time(reach(1, 2, -9, 3, -9, INF, 4), range(7))
    assert found.estimate == 4  # of 1 2 3 4 and three later ones
    assert found.notes == ("4 of 7 runs reached it",)
    assert median_time(reach(1, -2, -2, -2, INF), range(5)).estimate == INF


def test_median_time__agrees_with_kaplan_and_meier_by_hand():
    # S(1) = 5/6; censored at 2; S(3) = 5/6·3/4; S(4) = 5/6·3/4·2/3 = 0.4167.
    found = median_time(reach(1, -2, 3, 4, 5, 6), range(6))
    assert found.estimate == 4


def test_median_time__has_the_log_log_limits_of_the_survival_function():
    times = np.arange(1.0, 13.0)
    found = median_time(reach(*times), range(12))
    low, high = ([], [])
    for i, t in enumerate(times[:-1], 1):  # Greenwood's variance, without censoring
        s = 1 - i / 12
        error = 1.959964 * math.sqrt((1 - s) / (12 * s)) / abs(math.log(s))
        low.append((t, s ** math.exp(error)))
        high.append((t, s ** math.exp(-error)))
    wanted = [next(t for t, s in limits if s <= 0.5) for limits in (low, high)]
    assert ends(found) == wanted


def test_median_time__has_no_interval_below_five_runs():
    found = median_time(reach(1, 2, 3), range(3))
    assert found.estimate == 2
    assert not found.claims
    assert "no interval below 5 runs" in str(found)
    assert not median_time(reach(1, 2), range(2)).claims


def test_time_ratio__where_all_reach_it_is_the_ratio_of_logarithms():
    first, second = [2.0, 3, 5, 4, 6], [4.0, 7, 9, 9, 12]
    found = time_ratio(reach(*first, *second), range(5), range(5, 10))
    plain = paired_ratio(first, second)
    assert (found.estimate, *ends(found)) == (plain.estimate, *ends(plain))
    assert found.notes == ("5 of 5 first reached it", "5 of 5 second reached it")


def test_time_ratio__with_censored_runs_is_the_sign_test_of_the_median():
    ratios = np.array([0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.9])
    times = reach(*ratios[:-1], -9.0, *np.ones(8))  # the last takes more than 9
    found = time_ratio(times, range(8), range(8, 16))
    exact = stats.quantile_test([*ratios[:-1], 9.0], p=0.5).confidence_interval(0.95)
    assert found.estimate == pytest.approx(0.45)
    assert found.low == pytest.approx(exact.low) == 0.2
    assert (exact.high, found.high) == (9, INF)  # the censored one of the eight
    assert found.n == 8


def test_time_ratio__takes_bounds_from_either_side():
    # first ÷ second: exactly 0.5 nine times, > 8 / 4, < 1 / 5, and anything.
    first = [1.0] * 9 + [-8, 1, -3]
    second = [2.0] * 9 + [4, -5, -3]
    found = time_ratio(reach(*first, *second), range(12), range(12, 24))
    assert (found.estimate, *ends(found)) == (0.5, 0.5, 0.5)
    assert found.notes == ("10 of 12 first reached it", "10 of 12 second reached it")
    fewer = time_ratio(reach(*first, *second), range(3, 12), range(15, 24))
    assert (fewer.estimate, *ends(fewer)) == (0.5, 0, INF)


def test_time_ratio__of_a_diverged_run_is_infinitely_long():
    first, second = [INF] * 6, [1.0] * 6
    found = time_ratio(reach(*first, *second), range(6), range(6, 12))
    assert (found.estimate, *ends(found)) == (INF, INF, INF)
    other = time_ratio(reach(*first, *second), range(6, 12), range(6))
    assert (other.estimate, *ends(other)) == (0, 0, 0)


def test_time_ratio__leaves_the_interval_open_where_n_is_too_small():
    found = time_ratio(reach(1, 1, 1, 1, -9, *[2.0] * 5), range(5), range(5, 10))
    assert (found.estimate, *ends(found)) == (0.5, 0, INF)
    assert not time_ratio(reach(1, -9, 2, 2), range(2), range(2, 4)).claims


def test_time_ratio__is_open_where_the_median_is_not_known():
    found = time_ratio(reach(-5, -5, -5, 1, 1, 1), range(3), range(3, 6))
    assert np.isnan(found.estimate)
    assert "open [0, ∞]" in str(found)


def test_time_ratio__refuses_a_target_that_is_met_at_the_start():
    with pytest.raises(ValueError, match=r"before any budget is used; got 0\.9"):
        time_ratio(reach(0, 1, 1, 1, 1, 1), range(3), range(3, 6))


def test_time_ratio__refuses_runs_that_were_not_watched():
    times = reach(1.0, 1, NAN, 1, 1, 1)
    with pytest.raises(ValueError, match=r"got \['run-2'\]"):
        time_ratio(times, range(3), range(3, 6))


def test_restricted_difference__cuts_times_where_watching_ended():
    first, second = [1.0, 2, 3, 4, 9], [5.0, -6, INF, 5, 7]
    found = restricted_difference(reach(*first, *second), range(5), range(5, 10))
    wanted = paired_difference([1, 2, 3, 4, 6], [5, 6, 6, 5, 6])
    assert (found.estimate, *ends(found)) == (wanted.estimate, *ends(wanted))
    assert "cut at 6" in found.what


def test_restricted_difference__is_the_plain_one_where_all_reach_the_target():
    first, second = [1.0, 2, 3], [5.0, 6, 9]
    found = restricted_difference(reach(*first, *second), range(3), range(3, 6))
    assert found.estimate == pytest.approx(-14 / 3)


# -- coverage of nominal 95 % intervals, by simulation ----------------------------


@pytest.mark.parametrize("end", [INF, 1.5])
@pytest.mark.parametrize("n", [5, 10, 30])
def test_coverage__of_the_median_time_is_at_least_nominal(n, end):
    rng = np.random.default_rng([n, 3])
    hits = 0
    for _ in range(400):
        times = np.exp(0.5 * rng.normal(size=n))  # the median is 1
        found = median_time(reach(*np.where(times > end, -end, times)), range(n))
        hits += found.low <= 1 <= found.high
    assert hits / 400 >= 0.92


@pytest.mark.parametrize("n", [6, 10, 30])
def test_coverage__of_censored_ratios_is_at_least_nominal(n):
    rng = np.random.default_rng([n, 4])
    hits = 0
    for _ in range(400):
        first, second = np.exp(0.5 * rng.normal(size=(2, n)))
        first[0] = 2.0  # at least one is censored
        both = np.concatenate([first, second])
        both = np.where(both > 1.5, -1.5, both)
        found = time_ratio(reach(*both), range(n), range(n, 2 * n))
        hits += found.low <= 1 <= found.high
    assert hits / 400 >= 0.93
