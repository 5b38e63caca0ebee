from __future__ import annotations

import numpy as np
import pytest

from pipeline.compare import combine_runs, loaded
from pipeline.series import group_runs
from pipeline.verdict_sides import sides_of
from pipeline.verdict_targets import aim_of
from pipeline.verdicts import verdicts


@pytest.fixture
def combined(tmp_path, synthetic_run, write_run):
    """Return a function from runs, (algorithm, mode, seed[, extra]), to a dataset."""

    def make(*runs):
        paths = []
        for number, (algorithm, mode, seed, *rest) in enumerate(runs):
            run = synthetic_run(algorithm, mode, seed, **(rest[0] if rest else {}))
            if run.attrs["status"] == "diverged":
                run["val_accuracy"][:] = 0.2
            paths.append(write_run(run, tmp_path / str(number)))
        return loaded(combine_runs(paths))

    return make


def said(ds, target=None):
    return verdicts(ds, group_runs(ds), target)


def modes(seeds):
    return [("nd-cao", mode, seed) for seed in seeds for mode in ("sync", "async")]


def test_verdict__speed_and_difference_are_those_of_the_runs(combined):
    ds = combined(*modes(range(4)))
    (one,) = said(ds, {"val_accuracy": 0.6})
    assert one.title == "nd-cao async against nd-cao sync"
    speed, difference = one.figures
    times = {}
    for i in range(8):
        hit = np.flatnonzero(ds["val_accuracy"].values[i] >= 0.6)[0]
        key = str(ds["mode"].values[i]), int(ds["seed"].values[i])
        times[key] = ds["wall_time_s"].values[i, hit]
    logs = [np.log(times["async", s] / times["sync", s]) for s in range(4)]
    assert speed.estimate == pytest.approx(np.exp(np.mean(logs)))
    last = ds["test_accuracy"].values[:, -1]
    assert difference.estimate == pytest.approx(np.mean(last[1::2] - last[::2]))
    first, second = one.sentences
    shown = f"async reached 0.6 validation accuracy in {speed.estimate:.2f} ["
    assert first.startswith(shown)
    assert "of sync's wall time, n = 4 pairs (Student t of log-ratios, 95%)" in first
    assert "Target: given." in first
    assert "at equal updates per node (110), async − sync" in second


def test_verdict__with_two_pairs_refuses_and_gives_their_values(combined):
    (one,) = said(combined(*modes(range(2))))
    for sentence in one.sentences:
        assert sentence.startswith("No claim about")
        assert "n = 2 pairs, it takes 3 (seed 0: " in sentence
    values = [f.estimate for f in one.figures]
    assert np.isfinite(values).all()


def test_verdict__names_runs_without_partner_and_those_that_diverged(combined):
    end = {"status": "diverged", "stop_reason": "diverged: non-finite loss"}
    short = {"n_evals": 4, "attrs": end, "config": {"budget": {"steps": 110}}}
    runs = [*modes(range(4)), ("nd-cao", "sync", 4), ("nd-cao", "async", 5, short)]
    runs += [("nd-cao", "sync", 5)]
    (one,) = said(combined(*runs))
    why = {str(left) for left in one.left_out}
    assert "nd-cao-sync-digits-s4-abc123: no partner with seed 4" in why
    ended = "nd-cao-async-digits-s5-abc123: ended before: diverged: non-finite loss"
    assert ended in why
    speed, difference = one.figures
    assert speed.n == 5, "a run that diverged never reaches the target; it stays in"
    assert "4 of 5 first reached it" in speed.notes
    assert difference.n == 4


def test_verdict__without_a_common_seed_claims_nothing(combined):
    (one,) = said(combined(("nd-cao", "sync", 0), ("nd-cao", "async", 1)))
    assert one.sentences == ("No claim: no seed has been run on both sides.",)
    assert len(one.left_out) == 2


def test_verdict__does_not_compare_simulated_with_measured_time(combined):
    virtual = {"attrs": {"clock": "virtual"}}
    runs = [
        ("nd-cao", mode, seed, virtual if mode == "async" else {})
        for seed in range(3)
        for mode in ("sync", "async")
    ]
    (one,) = said(combined(*runs))
    assert not any("wall time" in sentence for sentence in one.sentences)
    assert "Times of one side are simulated: they are not compared." in one.notes


def test_verdict__of_a_run_that_is_there_twice_says_so(combined):
    again = {"attrs": {"params_sha256": "1" * 64}}
    runs = [*modes(range(3)), ("nd-cao", "async", 0, again)]
    (one,) = said(combined(*runs))
    assert one.sentences[0].startswith("Not compared: a side must have one run a seed")


def test_verdict__gradient_free_is_held_against_gradients_at_equal_samples(combined):
    runs = [(kind, "sync", s) for kind in ("nd-cao", "sgd") for s in range(3)]
    (one,) = said(combined(*runs))
    assert one.title == "nd-cao sync against sgd sync"
    assert len(one.sentences) == 3
    assert "at equal samples seen (220,000), nd-cao sync − sgd sync" in one.sentences[1]
    assert "when each has used its own budget" in one.sentences[2]


def test_sides__have_equal_settings_and_partition(combined):
    settings = [{"config": {"loss": loss}} for loss in ("squared", "cross-entropy")]
    runs = [
        ("nd-cao", mode, seed, one)
        for one in settings
        for seed in range(3)
        for mode in ("sync", "async")
    ]
    ds = combined(*runs)
    titles = [side.title for side in sides_of(ds, group_runs(ds))]
    assert sorted(titles) == [
        "nd-cao async · loss=cross-entropy against nd-cao sync · loss=cross-entropy",
        "nd-cao async · loss=squared against nd-cao sync · loss=squared",
    ]


def test_aim__is_the_largest_hundredth_that_every_run_reaches(combined):
    ds = combined(*modes(range(2)))
    aim = aim_of(ds, range(4))
    worst = ds["val_accuracy"].values.max(axis=1).min()
    assert aim.metric == "val_accuracy"
    assert worst - 0.01 < aim.target <= worst


def test_aim__without_a_validation_set_is_a_training_loss(combined):
    ds = combined(*modes(range(2)))
    ds["val_accuracy"][:] = np.nan
    aim = aim_of(ds, range(4))
    worst = ds["train_loss"].values.min(axis=1).max()
    assert aim.metric == "train_loss"
    assert worst <= aim.target <= worst * 1.1


def test_aim__refuses_a_target_on_test_data(combined):
    ds = combined(*modes(range(1)))
    with pytest.raises(ValueError, match="Test data are no target"):
        aim_of(ds, (0, 1), {"test_accuracy": 0.9})


def test_aim__is_none_where_all_runs_start_at_what_they_reach(combined):
    ds = combined(*modes(range(1)))
    ds["val_accuracy"][:] = 0.5
    assert np.isnan(aim_of(ds, (0, 1)).target)
    (one,) = said(ds)
    assert "No figure about the time to a target" in one.sentences[0]


def test_verdict__no_figure_where_a_side_had_only_been_evaluated_at_its_start(combined):
    runs = [("nd-cao", "sync", seed, {"n_evals": 2}) for seed in range(3)]
    runs += [("sgd", "sync", seed) for seed in range(3)]
    ds = combined(*runs)
    ds["n_samples"] = ds["n_samples"].where(
        ds["algorithm"] != "nd-cao", ds["n_samples"] * 1_000
    )
    (one,) = said(ds, {"val_accuracy": 0.6})
    text = next(s for s in one.sentences if "at equal samples" in s)
    assert text.startswith("No figure at equal samples seen (")
    assert text.endswith("by then nd-cao sync had been evaluated at its start only.")
