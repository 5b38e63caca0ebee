from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline import intervals
from pipeline.estimates import Estimate, LeftOut
from pipeline.statistics import (
    interquartile_mean,
    mean,
    paired_difference,
    paired_ratio,
    probability_of_improvement,
)

FIRST = [0.91, 0.93, 0.90, 0.95, 0.92]
SECOND = [0.90, 0.93, 0.88, 0.91, 0.93]


def ends(estimate):
    return [estimate.low, estimate.high]


def test_paired_difference__agrees_with_scipys_t_test():
    found = paired_difference(FIRST, SECOND)
    wanted = stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    np.testing.assert_allclose(ends(found), wanted, rtol=1e-12)
    assert found.estimate == pytest.approx(0.012)
    assert (found.method, found.n, found.unit) == ("Student t", 5, "pairs")


def test_paired_difference__agrees_with_a_calculation_by_hand():
    # Differences 1, 2, 3: mean 2, s = 1, t(0.975; 2) = 4.302653, s/√3 = 0.577350.
    found = paired_difference([2, 4, 6], [1, 2, 3])
    assert ends(found) == pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-6)


def test_paired_ratio__is_the_t_interval_of_the_logarithms():
    found = paired_ratio(FIRST, SECOND, level=0.9)
    test = stats.ttest_rel(np.log(FIRST), np.log(SECOND))
    np.testing.assert_allclose(ends(found), np.exp(test.confidence_interval(0.9)))
    assert found.estimate == pytest.approx(stats.gmean(np.divide(FIRST, SECOND)))
    assert found.method == "Student t of log-ratios"
    both = found.estimate * paired_ratio(SECOND, FIRST, level=0.9).estimate
    assert both == pytest.approx(1)


def test_paired_difference__is_scipys_bca_bootstrap_from_20_pairs_on(rng):
    first, second = rng.normal(size=(2, 25))
    found = paired_difference(first, second)
    wanted = stats.bootstrap(
        (first - second,), np.mean, rng=1, n_resamples=20_000, method="BCa"
    ).confidence_interval
    width = wanted.high - wanted.low
    np.testing.assert_allclose(ends(found), wanted, atol=0.03 * width)
    assert found.method == "BCa bootstrap"
    assert found == paired_difference(first, second)
    assert paired_difference(first[:19], second[:19]).method == "Student t"


def test_bootstrap__resamples_within_strata(rng):
    strata = ["a"] * 12 + ["b"] * 12
    x = np.concatenate([rng.normal(0, 1, 12), rng.normal(100, 1, 12)])
    apart, together = mean(x, strata=strata), mean(x)
    assert apart.method == "BCa bootstrap, 2 strata"
    assert apart.high - apart.low < 2
    assert together.high - together.low > 20


def test_bootstrap__pools_strata_of_fewer_than_ten(rng):
    x = rng.normal(size=30)
    sizes = intervals.split_strata(x, ["a"] * 13 + ["b"] * 8 + ["c"] * 9)
    assert sorted(map(len, sizes)) == [13, 17]
    sizes = intervals.split_strata(x, ["a"] * 14 + ["b"] * 12 + ["c"] * 4)
    assert sorted(map(len, sizes)) == [14, 16]
    assert mean(x, strata=range(30)).method == "BCa bootstrap"


def test_interquartile_mean__agrees_with_scipys_trim_mean(rng):
    for n in (3, 5, 8, 10, 19, 30):
        x = rng.standard_exponential(n)
        found = interquartile_mean(x)
        assert found.estimate == pytest.approx(stats.trim_mean(x, 0.25))
        assert found.low < found.estimate < found.high


def test_interquartile_mean__has_the_interval_of_tukey_and_mclaughlin():
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])
    found = interquartile_mean(x)
    # g = 2 cut off each end, h = 4 kept; winsorised 2 2 2 3 4 5 5 5, s² = 2.
    half = stats.t.ppf(0.975, 3) * math.sqrt(2.0) / (0.5 * math.sqrt(8))
    winsorised = np.array([2, 2, 2, 3, 4, 5, 5, 5])
    assert winsorised.var(ddof=1) == pytest.approx(2.0)
    np.testing.assert_allclose(ends(found), [3.5 - half, 3.5 + half])
    assert found.method == "Tukey–McLaughlin t"
    assert mean(x).estimate > 15


def test_interquartile_mean__of_three_is_their_mean():
    x = [1.0, 2.0, 4.0]
    assert ends(interquartile_mean(x)) == ends(mean(x))


def test_interquartile_mean__has_an_interval_where_bca_is_not_defined():
    x = [1.0] + [0.0] * 24
    found = interquartile_mean(x)
    assert found.method == "percentile bootstrap"
    assert ends(found) == [0, 0]


def test_probability_of_improvement__is_the_exact_binomial_interval():
    found = probability_of_improvement([3, 5, 2, 9, 4], [1, 4, 3, 1, 1])
    wanted = stats.binomtest(4, 5).proportion_ci(0.95, "exact")
    assert (found.estimate, ends(found)) == (0.8, [*wanted])
    assert found.notes == ("4 better, 0 equal, 1 worse",)
    lower = probability_of_improvement(
        [3, 5, 2, 9, 4], [1, 4, 3, 1, 1], higher_is_better=False
    )
    assert lower.estimate == pytest.approx(0.2)


def test_probability_of_improvement__widens_with_ties():
    found = probability_of_improvement([1, 1, 1, 1], [0, 1, 1, 1])
    assert found.estimate == 0.625
    assert found.low == stats.binomtest(1, 4).proportion_ci(0.95, "exact").low
    assert found.high == 1


@pytest.mark.parametrize("n", [0, 1, 2])
def test_statistics__refuse_to_claim_below_three(n):
    x, y = [1.0, 2.0][:n], [1.5, 2.5][:n]
    for found in (
        mean(x),
        interquartile_mean(x),
        paired_difference(x, y),
        paired_ratio(x, y),
        probability_of_improvement(x, y),
    ):
        assert not found.claims
        assert np.isnan(ends(found)).all()
        assert found.excludes(0) is None
        assert f"no claim, n = {n}" in str(found)


def test_statistics__refuse_what_is_not_finite_positive_or_paired():
    with pytest.raises(ValueError, match="`first` must be one finite number"):
        paired_difference([1, float("nan")], [1, 2])
    with pytest.raises(ValueError, match="one entry a pair each; got 1 and 2"):
        paired_difference([1], [1, 2])
    with pytest.raises(ValueError, match="must be positive to have a ratio; got 0"):
        paired_ratio([0, 1, 2], [1, 1, 1])
    with pytest.raises(ValueError, match="`level` must be in"):
        mean([1, 2, 3], level=95)
    with pytest.raises(ValueError, match=r"`strata` must have one entry a value \(3\)"):
        mean([1, 2, 3], strata=["a"])


def test_statistics__say_so_when_all_values_are_equal():
    found = paired_difference([2, 3, 4], [1, 2, 3])
    assert (found.low, found.high, found.method) == (1, 1, "all values are equal")


def test_estimate__prints_its_interval_method_and_n():
    found = Estimate("difference", -0.002, -0.006, 0.003, "Student t", 5)
    text = "difference: -0.002 [-0.006, 0.003], n = 5 pairs, 95%, Student t"
    assert str(found) == text
    assert found.excludes(0) is False
    assert found.excludes(0.01) is True
    unbounded = Estimate("time", 3.0, 2.0, math.inf, "m", 5, unit="runs")
    assert "3 [2, ∞], n = 5 runs" in str(unbounded)
    assert unbounded.claims
    assert str(LeftOut("run", "diverged")) == "run: diverged"


# -- coverage of nominal 95 % intervals, by simulation ----------------------------


def coverage(statistic, n, truth, draw, repeats):
    rng = np.random.default_rng([7, n])
    samples = draw(rng, (repeats, n))
    found = (statistic(x) for x in samples)
    return np.mean([e.low <= truth <= e.high for e in found])


def normal(rng, shape):
    return rng.normal(0.3, 2.0, shape)


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
def test_coverage__of_small_normal_samples_is_nominal(statistic, n):
    assert 0.92 <= coverage(statistic, n, 0.3, normal, 2000) <= 0.97


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
def test_coverage__of_bootstrapped_normal_samples_is_nominal(statistic, monkeypatch):
    monkeypatch.setattr(intervals, "N_RESAMPLES", 999)
    assert 0.92 <= coverage(statistic, 30, 0.3, normal, 1000) <= 0.97


def test_coverage__of_a_percentile_bootstrap_of_five_is_why_it_is_not_used():
    def percentile(x):
        low, high = stats.bootstrap(
            (x,), np.mean, method="percentile", n_resamples=999, rng=1
        ).confidence_interval
        return Estimate("mean", x.mean(), low, high, "percentile", len(x))

    assert 0.80 <= coverage(percentile, 5, 0.3, normal, 1000) <= 0.87
