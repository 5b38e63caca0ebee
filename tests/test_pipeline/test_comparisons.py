from __future__ import annotations

import numpy as np
import pytest

from pipeline.compare import combine_runs, loaded
from pipeline.comparisons import difference_at, improvement_at, level_at, ratio_at
from pipeline.pairing import pair_runs, runs_of
from pipeline.reaching import saved_to_target, speed_to_target, time_to_target
from pipeline.series import group_runs
from pipeline.statistics import interquartile_mean, mean, paired_difference

ASYNC, SYNC = {"mode": "async"}, {"mode": "sync"}


@pytest.fixture(scope="module")
def batch(tmp_path_factory, synthetic_run, write_run):
    """Return a function that combines runs: ``batch(("sync", 0, {}), …)``."""

    def make(*wanted):
        folder = tmp_path_factory.mktemp("results")
        paths = [
            write_run(synthetic_run(mode=mode, seed=seed, **extra), folder / str(i))
            for i, (mode, seed, extra) in enumerate(wanted)
        ]
        return loaded(combine_runs(paths))

    return make


@pytest.fixture(scope="module")
def whole(batch):
    return batch(*((mode, seed, {}) for mode in ("sync", "async") for seed in range(5)))


def test_pair_runs__pairs_common_seeds(whole):
    pairs = pair_runs(whole, ASYNC, SYNC)
    assert (pairs.first, pairs.second) == ((5, 6, 7, 8, 9), (0, 1, 2, 3, 4))
    assert (pairs.name, pairs.seeds) == ("async vs sync", (0, 1, 2, 3, 4))
    assert pairs.left_out == ()
    groups = {group.label: group.runs for group in group_runs(whole)}
    by_group = pair_runs(whole, groups["nd-cao async"], groups["nd-cao sync"], "x")
    assert (by_group.first, by_group.name) == (pairs.first, "x")


def test_pair_runs__names_what_has_no_partner(batch):
    ds = batch(("sync", 0, {}), ("sync", 1, {}), ("async", 1, {}), ("async", 2, {}))
    pairs = pair_runs(ds, ASYNC, SYNC)
    assert pairs.seeds == (1,)
    assert [str(one) for one in pairs.left_out] == [
        "nd-cao-async-digits-s2-abc123: no partner with seed 2",
        "nd-cao-sync-digits-s0-abc123: no partner with seed 0",
    ]


def test_pair_runs__pairs_equal_settings_where_both_sides_vary(batch):
    loss = {"a": {"config": {"loss": "a"}}, "b": {"config": {"loss": "b"}}}
    ds = batch(
        *(("sync", seed, loss[kind]) for seed in (0, 1) for kind in "ab"),
        *(("async", seed, loss[kind]) for kind in "ba" for seed in (1, 0)),
    )
    pairs = pair_runs(ds, ASYNC, SYNC)
    assert pairs.strata == ("loss=a", "loss=a", "loss=b", "loss=b")
    for first, second in zip(pairs.first, pairs.second, strict=True):
        for name in ("config.loss", "seed"):
            assert ds[name].values[first] == ds[name].values[second]


def test_pair_runs__ignores_settings_that_tell_the_sides_apart(batch):
    slow = {"config": {"delays": {"2": 0.1}}}
    ds = batch(*(("sync", n, {}) for n in range(3)), *(("async", 0, slow),))
    assert len(pair_runs(ds, ASYNC, SYNC)) == 1


def test_pair_runs__refuses_two_runs_of_one_seed_and_says_what_differs(batch):
    ds = batch(
        ("sync", 0, {}),
        ("async", 0, {"config": {"loss": "a"}}),
        ("async", 0, {"config": {"loss": "b"}}),
    )
    with pytest.raises(ValueError, match=r"Choose one value of config\.loss"):
        pair_runs(ds, ASYNC, SYNC)
    assert len(pair_runs(ds, {"mode": "async", "config.loss": "a"}, SYNC)) == 1


def test_pair_runs__refuses_overlapping_empty_and_unknown_sides(whole):
    with pytest.raises(ValueError, match="on both"):
        pair_runs(whole, [0, 1], [1, 2])
    with pytest.raises(ValueError, match="at least one run; got none"):
        runs_of(whole, {"mode": "both"})
    with pytest.raises(ValueError, match="`colour` must be a coordinate over run"):
        runs_of(whole, {"colour": "red"})


def test_difference_at__is_the_paired_difference_of_the_held_values(whole):
    pairs = pair_runs(whole, ASYNC, SYNC)
    found = difference_at(whole, pairs, "test_accuracy", "update", at=55)
    at = whole["test_accuracy"].values[:, 5]  # evaluated at 50, next at 60
    wanted = paired_difference(at[5:], at[:5])
    assert (found.estimate, found.low, found.high) == (
        *(wanted.estimate, wanted.low, wanted.high),
    )
    name = "difference of test accuracy at updates per node = 55, async vs sync"
    assert (found.what, found.n, found.left_out) == (name, 5, ())


def test_ratio_and_improvement__name_their_budget(whole):
    pairs = pair_runs(whole, ASYNC, SYNC)
    time = ratio_at(whole, pairs, "wall_time_s", "update", 100)
    assert time.estimate == pytest.approx(1 / 1.4, rel=0.1)
    assert "wall time at updates per node = 100" in time.what
    better = improvement_at(whole, pairs, "test_accuracy", "wall_time", 3.0)
    assert better.estimate == 1
    assert "test accuracy at wall time (s) = 3" in better.what
    loss = improvement_at(whole, pairs, "train_loss", "wall_time", 3.0)
    assert loss.estimate == 1


def test_level_at__is_the_mean_of_one_side(whole):
    values = whole["test_accuracy"].values[5:, -1]
    found = level_at(whole, ASYNC)
    assert (found.estimate, found.low) == (mean(values).estimate, mean(values).low)
    middle = level_at(whole, ASYNC, interquartile=True)
    assert middle.estimate == interquartile_mean(values).estimate
    assert middle.unit == "runs"


def test_targets__name_target_budget_and_count(whole):
    pairs = pair_runs(whole, ASYNC, SYNC)
    found = speed_to_target(whole, pairs, "val_accuracy", 0.5)
    assert found.high < 1
    assert "async vs sync" in found.what
    assert "wall time (s) to validation accuracy ≥ 0.5" in found.what
    times = time_to_target(whole, ASYNC, "val_accuracy", 0.5)
    assert (times.n, times.unit) == (5, "runs")
    saved = saved_to_target(whole, pairs, "val_accuracy", 0.5)
    assert saved.high < 0


# -- a batch in which much went wrong ----------------------------------------------

DIVERGED = {"status": "diverged", "stop_reason": "diverged: non-finite loss"}


@pytest.fixture(scope="module")
def faulty(batch):
    """Return seeds 0-5 of both modes, with one of everything that can go wrong."""
    same = {"config": {"budget": {"steps": 110, "seconds": 60}}}
    short = {"n_evals": 6, **same}  # its seconds were used up after 50 updates
    burst = {"n_evals": 4, "attrs": DIVERGED, **same}  # after 30 updates
    ds = batch(
        *(("sync", seed, same) for seed in range(4)),
        *(("sync", 4, short), ("sync", 5, burst)),
        *(("async", seed, same) for seed in (0, 1, 4, 5)),
        ("async", 2, burst),  # and seed 3 is missing
    )
    ds["val_accuracy"].values[[5, 10]] = 0.2  # of the two that diverged
    return ds


def test_faulty_batch__difference_uses_what_there_is_and_names_the_rest(faulty):
    pairs = pair_runs(faulty, ASYNC, SYNC)
    found = difference_at(faulty, pairs, "test_accuracy", "update", 100)
    end = {
        (str(m), int(s)): faulty["test_accuracy"].values[i, 5 if i == 4 else 10]
        for i, (m, s) in enumerate(
            zip(faulty["mode"].values, faulty["seed"].values, strict=True)
        )
    }
    wanted = paired_difference(
        [end["async", s] for s in (0, 1, 4)], [end["sync", s] for s in (0, 1, 4)]
    )
    assert (found.n, found.estimate, found.low) == (3, wanted.estimate, wanted.low)
    assert [str(one) for one in found.left_out] == [
        "nd-cao-sync-digits-s3-abc123: no partner with seed 3",
        "nd-cao-async-digits-s2-abc123: ended before: diverged: non-finite loss",
        "nd-cao-sync-digits-s5-abc123: ended before: diverged: non-finite loss",
    ]
    assert found.notes == ("1 of 6 runs had ended by then: their last values",)


def test_faulty_batch__default_budget_is_what_all_that_finished_have(faulty):
    pairs = pair_runs(faulty, ASYNC, SYNC)
    found = difference_at(faulty, pairs)
    assert "updates per node = 50," in found.what
    assert (found.n, found.notes) == (3, ())


def test_faulty_batch__early_budgets_use_runs_that_diverge_later(faulty):
    pairs = pair_runs(faulty, ASYNC, SYNC)
    found = difference_at(faulty, pairs, "test_accuracy", "update", 30)
    assert found.n == 5
    assert [one.why for one in found.left_out] == ["no partner with seed 3"]


def test_faulty_batch__refuses_to_claim_when_too_little_is_left(faulty):
    chosen = faulty.isel(run=[0, 1, 2, 6, 7, 10])
    found = difference_at(chosen, pair_runs(chosen, ASYNC, SYNC), at=100)
    assert found.n == 2
    assert not found.claims
    assert np.isfinite(found.estimate)


def test_faulty_batch__runs_that_never_reach_a_target_count(faulty):
    pairs = pair_runs(faulty, ASYNC, SYNC)
    found = speed_to_target(faulty, pairs, "val_accuracy", 0.6)
    assert found.n == 5
    assert found.notes == ("4 of 5 first reached it", "4 of 5 second reached it")
    times = time_to_target(faulty, ASYNC, "val_accuracy", 0.6)
    assert (times.n, times.notes) == (5, ("4 of 5 runs reached it",))


def test_comparisons__name_runs_that_do_not_use_a_budget(batch):
    gradient = {"algorithm": "sgd"}
    ds = batch(
        *(("sync", n, {}) for n in range(3)), *(("sync", n, gradient) for n in range(3))
    )
    pairs = pair_runs(ds, {"algorithm": "nd-cao"}, {"algorithm": "sgd"})
    found = difference_at(ds, pairs, "test_accuracy", "loss_values", 50)
    assert (found.n, len(found.left_out)) == (0, 3)
    assert {one.why for one in found.left_out} == {"does not use that budget"}
    times = time_to_target(ds, {"algorithm": "sgd"}, "val_loss", 1.0, "loss_values")
    assert (times.n, len(times.left_out)) == (0, 3)
    speed = speed_to_target(ds, pairs, "val_loss", 1.0, "loss_values")
    assert (speed.n, speed.claims) == (0, False)
