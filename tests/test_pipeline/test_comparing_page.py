"""The recipes of docs/comparing.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.estimates import Estimate
from pipeline.exports import FORMATS
from pipeline.intervals import MIN_STRATUM
from pipeline.statistics import MIN_BOOTSTRAP

PAGE = Path(__file__).parents[2] / "docs" / "comparing.md"
RECIPES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def done(tmp_path_factory, synthetic_run, write_run):
    """Return the names that the recipes define, run one after another."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "results" / "sync-vs-async"
    for mode in ("sync", "async"):
        for seed in range(4):
            write_run(synthetic_run(mode=mode, seed=seed), folder)
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for recipe in RECIPES:
            exec(compile(recipe, str(PAGE), "exec"), names)
    return names


def test_page__has_five_recipes():
    assert len(RECIPES) == 5


def test_recipe_1__selects_runs_and_averages_over_them(done):
    values = done["ds"]["final_test_accuracy"].values
    assert done["asynchronous"].sizes["run"] == 4
    is_async = done["ds"]["mode"].values == "async"
    assert done["accuracy"].sel(mode="async").item() == values[is_async].mean()
    assert done["ds"]["test_accuracy"].chunks is None


def test_recipe_2__pairs_over_seeds(done):
    assert done["gain"].dims == ("seed",)
    assert np.isfinite(done["gain"]).all()


def test_recipe_3__has_curves_over_the_budget_it_names(done):
    assert {*done["mean_curve"].dims} == {"mode", "budget"}
    assert done["curves"].attrs["budget"] == "wall_time"
    assert done["beyond"].values.tolist() == [0, 0, 0]


def test_recipe_4__counts_staleness(done):
    assert done["counts"][0] == 0
    assert done["counts"][1] == done["counts"].sum() > 300  # one version, always


def test_recipe_5__gives_figures_with_n_and_method(done):
    for name in ("difference", "better", "speed", "level"):
        assert isinstance(done[name], Estimate)
        assert (done[name].n, done[name].claims) == (4, True)
    assert (done["median"].n, done["median"].claims) == (4, False)
    assert done["speed"].estimate < 1


def test_page__states_the_thresholds_and_formats_that_the_code_has():
    text = PAGE.read_text(encoding="utf-8")
    assert f"interval below {MIN_BOOTSTRAP} |" in text
    assert f"fewer than {MIN_STRATUM} pairs are pooled" in text
    assert all(f"| `{suffix}` |" in text for suffix in FORMATS)
