from __future__ import annotations

import numpy as np
import pytest

from pipeline.asynchrony import activity, covered, read_activity, window
from pipeline.compare import combine_runs
from pipeline.report_asynchrony import activity_data, activity_of_runs, activity_table
from pipeline.report_figures import write_figures
from pipeline.series import group_runs


def by_hand():
    """Two workers, two rounds: worker 1 is 1 s and then 3 s late; scores of 1 s."""
    return {
        "update_node": np.array([0, 1, 0, 1]),
        "update_step": np.array([1, 1, 2, 2]),
        "seen_version": np.array([0, 0, 1, 1]),
        "scored_version": np.array([1, 2, 4, -1]),
        "start_s": np.array([1.0, 1.0, 4.0, 4.0]),
        "end_s": np.array([2.0, 3.0, 5.0, 8.0]),
        "worker": np.array([0, 1, 0, 1]),
        "score_start_s": np.array([0.0, 3.0]),
        "score_end_s": np.array([1.0, 4.0]),
        "worker_names": ["a", "b"],
    }


def test_activity__agrees_with_a_hand_calculation():
    found = activity(by_hand(), synchronous=True)
    assert found is not None
    assert found.staleness.tolist() == [1, 1, 1]
    assert found.n_unscored == 1
    assert found.updates.tolist() == [2, 2]
    assert found.workers == ("a", "b")
    assert found.span_s == 8.0
    np.testing.assert_allclose(found.updating, [2 / 8, 6 / 8])
    np.testing.assert_allclose(found.scoring, [2 / 8, 2 / 8])
    np.testing.assert_allclose(found.idle, [4 / 8, 0])
    assert found.barrier == pytest.approx((1 + 3) / 16)


def test_activity__has_no_barrier_without_one():
    found = activity(by_hand(), synchronous=False)
    assert found is not None
    assert found.barrier is None
    replicas = by_hand() | {"score_start_s": np.empty(0), "score_end_s": np.empty(0)}
    found = activity(replicas, synchronous=True)
    assert found is not None
    assert found.barrier is None
    assert found.n_scores == 0


def test_activity__of_a_run_without_updates_is_none():
    empty = {k: v[:0] for k, v in by_hand().items()}
    assert activity(empty, synchronous=True) is None


def test_covered__counts_overlapping_spans_once():
    spans = np.array([[0.0, 2.0], [1.0, 3.0], [5.0, 6.0], [1.5, 1.6]])
    assert covered(spans) == 4.0
    assert covered(np.empty((0, 2))) == 0.0


def test_window__is_the_bounded_middle():
    n = 10_000
    many = by_hand() | {
        "update_node": np.zeros(n, int),
        "worker": np.full(n, 3),
        "start_s": np.arange(n) * 0.01,
        "end_s": np.arange(n) * 0.01 + 0.005,
        "score_start_s": np.empty(0),
        "score_end_s": np.empty(0),
    }
    part = window(many, seconds=5.0, most=800)
    assert (part.start_s + part.end_s) / 2 == pytest.approx(50, abs=0.01)
    assert part.end_s - part.start_s == pytest.approx(5)
    assert len(part.row) == pytest.approx(500, abs=2)
    assert set(part.row.tolist()) == {0}
    part = window(many, seconds=50.0, most=800)
    assert 300 < len(part.row) <= 800
    assert part.updates.min() >= part.start_s
    assert part.updates.max() <= part.end_s


def test_read_activity__names_a_store_that_does_not_decode(
    tmp_path, synthetic_run, write_run
):
    path = write_run(synthetic_run(), tmp_path)
    (path / "start_s" / "zarr.json").unlink()
    with pytest.raises(ValueError, match=r"damaged start_s/zarr.json .*Train it again"):
        read_activity(path)


def test_activity_of_real_runs__staleness_zero_in_sync_and_a_lost_barrier(
    sync_run, async_run
):
    paths = [next(folder.rglob("*.zarr")) for _, folder in (sync_run, async_run)]
    sync, free = (read_activity(path) for path in paths)
    found = activity(sync, synchronous=True)
    assert found is not None
    assert found.staleness[1:].sum() == 0
    assert found.barrier is not None
    assert 0 <= found.barrier < 1
    other = activity(free, synchronous=False)
    assert other is not None
    assert other.staleness[1:].sum() > 0
    assert other.updates[1] == other.updates.min(), "block 1 is delayed"
    for one in (found, other):
        total = one.updating + one.scoring + one.idle
        np.testing.assert_allclose(total, 1)
        assert (np.array([*one.updating, *one.idle]) >= -1e-9).all()


def test_report__reads_few_of_many_runs_and_says_so(tmp_path, write_demo_runs):
    ds = combine_runs(write_demo_runs(tmp_path)).isel(run=[0, 1, 2, 3, 4, 5] * 10)
    runs = activity_of_runs(ds, group_runs(ds))
    assert len(runs) == 24
    assert [r.label for r in runs if r.window is not None] == [
        "nd-cao async",
        "nd-cao sync",
        "sgd sync",
    ]
    assert "Of 24 of 60 runs" in activity_table(runs, 60)


def test_report__leaves_out_a_run_whose_updates_are_damaged(tmp_path, write_demo_runs):
    paths = write_demo_runs(tmp_path)
    ds = combine_runs(paths)
    (paths[0] / "end_s" / "zarr.json").unlink()
    runs = activity_of_runs(ds, group_runs(ds))
    text = activity_table(runs, 6)
    assert f"Without updates to show: {paths[0].stem}: " in text
    assert paths[0].stem not in [one["id"] for one in activity_data(runs)]


def test_write_figures__writes_png_and_svg_of_every_figure(tmp_path, write_demo_runs):
    ds = combine_runs(write_demo_runs(tmp_path / "runs"))
    files = write_figures(ds, tmp_path / "figures")
    assert len(files) == 8
    assert {f.name for f in files if f.stem == "curves"} == {"curves.png", "curves.svg"}
    for file in files:
        start = file.read_bytes()[:100]
        assert start.startswith(b"\x89PNG" if file.suffix == ".png" else b"<?xml")
    assert {*(tmp_path / "figures").iterdir()} == {*files}
