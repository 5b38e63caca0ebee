from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from pipeline.compare import combine_runs
from pipeline.curves import curves_figure, curves_png, curves_svg, render, write_curves
from pipeline.report_asynchrony import activity_of_runs
from pipeline.report_figures import activity_figure
from pipeline.series import AXES, METRICS, Curve, group_runs, mean_curve, run_curve

UPDATE, _, WALL_TIME, LOSS_VALUES, _ = AXES
ACCURACY = METRICS[0]


@pytest.fixture(scope="module")
def combined(tmp_path_factory, write_demo_runs):
    return combine_runs(write_demo_runs(tmp_path_factory.mktemp("results")))


def test_group_runs__groups_seeds_and_colours_by_algorithm_and_mode(combined):
    groups = group_runs(combined)
    assert [g.label for g in groups] == ["nd-cao async", "nd-cao sync", "sgd sync"]
    assert [g.runs for g in groups] == [(2, 3), (0, 1), (4, 5)]
    assert [g.colour for g in groups] == [0, 1, 2]


def test_group_runs__never_averages_over_different_settings(
    tmp_path, synthetic_run, write_run
):
    settings = [{"loss": "squared"}, {"loss": "cross-entropy"}]
    paths = [
        write_run(synthetic_run(seed=seed, config=config), tmp_path / config["loss"])
        for config in settings
        for seed in (0, 1)
    ]
    groups = group_runs(combine_runs(paths))
    assert [g.label for g in groups] == [
        "nd-cao sync · loss=squared",
        "nd-cao sync · loss=cross-entropy",
    ]
    assert [g.runs for g in groups] == [(0, 1), (2, 3)]
    assert [(g.colour, g.dash) for g in groups] == [(0, 0), (0, 1)]


def test_group_runs__leaves_out_what_the_rest_of_a_label_implies(
    tmp_path, synthetic_run, write_run
):
    paths = [
        write_run(synthetic_run(seed=seed, config=config), tmp_path / f"{i}-{seed}")
        for i, config in enumerate(
            {"loss_samples": samples, "blocks": blocks}
            for samples, blocks in ((100, "all"), (200, "by_layer"))
        )
        for seed in (0, 1)
    ]
    labels = [group.label for group in group_runs(combine_runs(paths))]
    assert len(labels) == 2
    assert all(len(label.split(" · ")) == 2 for label in labels)


def test_group_runs__says_which_runs_had_a_delay(tmp_path, synthetic_run, write_run):
    delays: list[dict[str, object]] = [{"delays": {"2": 0.05}}, {"delays": {}}]
    runs = [
        write_run(synthetic_run(mode=mode, config=delay), tmp_path / f"{mode}{i}")
        for mode in ("sync", "async")
        for i, delay in enumerate(delays)
    ]
    combined = combine_runs(runs)
    assert combined.attrs["config_varies"] == ["config.delays.2"]
    assert {group.label for group in group_runs(combined)} == {
        f"nd-cao {mode} · {delay}"
        for mode in ("sync", "async")
        for delay in ("delay of 2: 0.05 s", "no delay")
    }


def test_mean_curve__is_pointwise_on_a_common_grid():
    x = np.array([0.0, 1.0, 2.0])
    mean = mean_curve([Curve(x, x), Curve(x, 3 * x)])
    np.testing.assert_array_equal(mean.y, 2 * x)
    assert not mean.stepped


def test_mean_curve__never_looks_ahead_nor_beyond_a_seed():
    first = Curve(np.array([0.0, 2.0, 6.0]), np.array([0.0, 10.0, 20.0]))
    second = Curve(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    mean = mean_curve([first, second])
    np.testing.assert_array_equal(mean.x, [1, 2, 3])
    np.testing.assert_array_equal(mean.y, [1, 6, 7])
    assert mean.stepped


def test_run_curve__is_empty_for_a_budget_that_the_run_does_not_use(combined):
    assert len(run_curve(combined, 5, LOSS_VALUES, ACCURACY).x) == 0
    assert len(run_curve(combined, 0, LOSS_VALUES, ACCURACY).x) == 12


def test_curves_figure__has_one_thick_line_a_group_and_one_thin_a_seed(combined):
    figure = curves_figure(combined)
    panels = figure.axes
    assert len(panels) == 6
    for panel in panels:
        widths = [line.get_linewidth() for line in panel.get_lines()]
        assert sorted(widths) == [0.7] * 6 + [2.0] * 3
    assert [p.get_xlabel() for p in panels[3:]] == [a.label for a in AXES[:3]]


def test_curves__png_and_svg_are_written_whole_and_repeatably(combined, tmp_path):
    png = write_curves(combined, tmp_path / "figures" / "a.png")
    svg = write_curves(combined, tmp_path / "figures" / "a.svg", ["wall_time"])
    assert png.read_bytes() == curves_png(combined)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_text(encoding="utf-8") == curves_svg(combined, ["wall_time"])
    assert sorted(p.name for p in png.parent.iterdir()) == ["a.png", "a.svg"]


def test_curves__refuse_an_unknown_axis_and_format(combined, tmp_path):
    with pytest.raises(ValueError, match=r"`axes` must be of .*got 'time'"):
        curves_figure(combined, ["time"])
    with pytest.raises(ValueError, match="at least one budget"):
        curves_figure(combined, [])
    with pytest.raises(ValueError, match=r"end with \.png or \.svg"):
        write_curves(combined, tmp_path / "a.pdf")


def test_curves__draw_a_run_that_diverged_at_its_first_update(
    tmp_path, synthetic_run, write_run
):
    end = {"status": "diverged", "stop_reason": "non-finite loss"}
    run = synthetic_run(n_evals=1, attrs=end)
    run["train_loss"][:] = np.nan
    ds = combine_runs([write_run(run, tmp_path)])
    assert curves_png(ds).startswith(b"\x89PNG")


def test_curves__treat_a_dollar_in_a_name_as_text(tmp_path, synthetic_run, write_run):
    run = synthetic_run(attrs={"algorithm": "cheap $ and $x_$"})
    assert "cheap $" in group_runs(combine_runs([write_run(run, tmp_path)]))[0].label
    assert curves_png(combine_runs([tmp_path / f"{run.attrs['run_id']}.zarr"]))


@pytest.mark.parametrize("name", ["$x_{$", "a$b$c_{", "$\\frac{$", "\\$", "a\x1b[2Jb"])
def test_pictures__no_name_breaks_one(name, tmp_path, synthetic_run, write_run):
    runs = [
        synthetic_run("nd-cao", mode, 0, attrs={"algorithm": name, "partition": name})
        for mode in ("sync", "async")
    ]
    ds = combine_runs([write_run(run, tmp_path) for run in runs])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a control character
        curves_png(ds)
        for one in activity_of_runs(ds, group_runs(ds)):
            render(activity_figure(replace(one, label=name, run_id=name)), "png")
