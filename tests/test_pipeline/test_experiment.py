"""Experiments as files: what they plan, in what order, how errors say where."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from blocks import ALGORITHMS
from blocks.models import build_model
from blocks.partition import partition
from pipeline.experiment import (
    Experiment,
    FileError,
    load_experiment,
    shipped_experiments,
)

ROOT = Path(__file__).parents[2]
SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}


def make(**fields) -> Experiment:
    return Experiment.model_validate({"name": "x", **fields})


def names(experiment: Experiment) -> list[str]:
    return [run.name for run in experiment.runs()]


@pytest.fixture
def problems(tmp_path):
    """Return the function that says what is wrong with a file, without its folder."""

    def read(text: str) -> list[str]:
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(FileError) as caught:
            load_experiment(path)
        return [str(p).removeprefix(f"{tmp_path}/") for p in caught.value.problems]

    return read


# -- shipped ---------------------------------------------------------------------------


def test_shipped__are_the_four_that_the_docs_name():
    assert set(shipped_experiments()) == {
        "smoke",
        "sync-vs-async",
        "baselines",
        "four-cases",
    }


@pytest.mark.parametrize("name", shipped_experiments())
def test_shipped__is_valid_named_as_its_file_and_pairs_seeds(name):
    experiment = load_experiment(name)
    runs = experiment.runs()
    assert experiment.name == name
    assert experiment.description
    arms = {run.arm for run in runs}
    assert len(experiment.seeds) > 1
    for arm in arms:
        assert tuple(r.seed for r in runs if r.arm == arm) == experiment.seeds
    assert all(run.config.seed == run.seed for run in runs)


@pytest.mark.parametrize("name", shipped_experiments())
def test_shipped__every_arms_network_can_be_split_as_it_says(name):
    for run in load_experiment(name).runs():
        config = run.config
        if run.seed or config.blocks is None:
            continue
        shape = SHAPES[config.dataset]
        model = build_model(
            config.model.name, shape, 10, seed=0, **config.model.arguments()
        )
        assert len(partition(config.blocks, model)) > 1


def test_shipped__baselines_have_every_registered_method():
    runs = load_experiment("baselines").runs()
    assert {run.config.algorithm.kind for run in runs} == set(ALGORITHMS)
    for run in runs:
        budget = run.config.budget.model_dump(exclude_none=True)
        searches = run.config.algorithm.scored
        assert budget == ({"loss_values": 6000} if searches else {"samples": 270_000})


def test_shipped__files_are_installed_beside_the_packages():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    assert "experiments" in settings["packages"]["find"]["include"]
    assert "*.yaml" in settings["package-data"]["*"]
    assert (ROOT / "experiments" / "__init__.py").is_file()


def test_load__an_unknown_name_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"one of .*smoke.*got nope"):
        load_experiment("nope")


# -- the plan --------------------------------------------------------------------------


def test_runs__order_is_of_the_file_with_seeds_outermost():
    experiment = make(
        base={"algorithm": "nd-cao"},
        grid={"mode": ["async", "sync"], "blocks": ["by_unit:3", "all"]},
        seeds=[7, 3],
    )
    arms = [
        f"{mode}-digits-nd-cao-{blocks}"
        for mode in ("async", "sync")
        for blocks in ("by_unit-3", "all")
    ]
    expected = [f"{arm}-s{seed}" for seed in (7, 3) for arm in arms]
    assert names(experiment) == expected == names(experiment)


def test_runs__free_names_stand_for_what_they_set_and_none_is_silent():
    straggler = {"none": {}, "straggler": {"delays": {2: 0.05}, "own_worker": [2]}}
    experiment = make(
        base={"dataset": "mnist"}, grid={"mode": ["async"], "straggler": straggler}
    )
    assert names(experiment) == [
        "async-mnist-nd-cao-s0",
        "async-mnist-nd-cao-straggler-s0",
    ]
    assert experiment.runs()[1].config.delays == {2: 0.05}
    assert experiment.runs()[1].labels == {"mode": "async", "straggler": "straggler"}


def test_runs__without_grid_and_arms_the_base_is_the_only_arm():
    assert names(make(seeds=2)) == ["sync-digits-nd-cao-s0", "sync-digits-nd-cao-s1"]


def test_runs__arms_come_after_the_grid_and_go_over_the_base():
    experiment = make(
        base={"algorithm": {"kind": "nd-cao", "window": 20}, "model": {"hidden": [8]}},
        grid={"mode": ["sync"]},
        arms=[
            {"label": "wide", "settings": {"model": {"hidden": [9]}, "mode": "async"}},
            {"label": "deep", "settings": {"nd_cao.window": 30, "model": "lenet"}},
        ],
    )
    first, wide, deep = (run.config for run in experiment.runs())
    assert first.algorithm.window == wide.algorithm.window == 20
    assert (wide.model.hidden, wide.mode) == ((9,), "async")
    assert deep.algorithm.window == 30
    assert (deep.model.name, deep.model.hidden) == ("lenet", None)


def test_runs__budget_is_of_arms_that_set_none():
    experiment = make(
        grid={"how": {"long": {"budget": {"loss_values": 9}}, "short": {}}},
        budget={"steps": 5},
    )
    long, short = (
        r.config.budget.model_dump(exclude_none=True) for r in experiment.runs()
    )
    assert (long, short) == ({"loss_values": 9}, {"steps": 5})


def test_runs__settings_of_other_algorithms_in_the_base_are_left_out():
    experiment = make(
        base={"nd_cao.window": 20, "sgd.momentum": 0.5},
        grid={"algorithm": ["nd-cao", "sgd"]},
    )
    nd_cao, sgd = (run.config.algorithm for run in experiment.runs())
    assert (nd_cao.window, sgd.momentum) == (20, 0.5)


def test_dropped__a_mode_that_an_algorithm_has_not():
    experiment = make(
        grid={"algorithm": ["nd-cao", "sgd", "async-sgd"], "mode": ["sync", "async"]}
    )
    assert [d.labels for d in experiment.dropped] == [
        {"algorithm": "sgd", "mode": "async"},
        {"algorithm": "async-sgd", "mode": "sync"},
    ]
    assert "sgd has no mode async" in experiment.dropped[0].reason


def test_dropped__what_says_nothing_to_an_algorithm_is_run_once():
    experiment = make(
        grid={
            "algorithm": ["nd-cao", "local-sgd", "sgd"],
            "blocks": ["by_unit:3", "all"],
            "nodes": [2, 4],
            "nd_cao.window": [10, 20],
        }
    )
    kinds = [run.config.algorithm.kind for run in experiment.runs()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "nd-cao": 4,
        "local-sgd": 2,
        "sgd": 1,
    }
    assert len(experiment.runs()) + len(experiment.dropped) == 24


def test_exclude__by_name_or_value_and_by_lists():
    experiment = make(
        grid={"mode": ["sync", "async"], "blocks": ["by_unit:3", "by_layer", "all"]},
        exclude=[{"mode": "sync", "blocks": ["by_unit:3", "by_layer"]}],
    )
    assert len(experiment.runs()) == 4
    assert [d.reason for d in experiment.dropped] == ["excluded", "excluded"]


def test_docs__the_full_example_is_valid_and_leaves_out_what_the_page_says(tmp_path):
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "windows.yaml"
    path.write_text(text, encoding="utf-8")
    experiment = load_experiment(path)
    assert f"{len(experiment.runs())} runs" in page
    sgd = [r for r in experiment.runs() if r.config.algorithm.kind == "sgd"]
    assert len(sgd) == len(experiment.seeds)
    assert set(Experiment.model_fields) <= set(
        re.findall(r"^\| `(\w+)` \|", page, re.M)
    )


# -- folders and identities ------------------------------------------------------------


def identity(config) -> tuple[str, str]:
    return config.experiment, config.run_id(config.dataset, "c")


def test_folder__arms_of_equal_mathematics_get_stores_of_their_own():
    straggler = {"none": {}, "slow": {"delays": {2: 0.05}}}
    grid = {
        "mode": ["sync", "async"],
        "straggler": straggler,
        "cluster.workers": [1, 2],
    }
    configs = [run.config for run in make(grid=grid).runs()]
    assert len({identity(config) for config in configs}) == len(configs) == 8
    sync = [c for c in configs if c.mode == "sync"]
    assert len({c.run_id("digits", "c") for c in sync}) == 1


def test_folder__of_an_arm_does_not_depend_on_other_arms():
    slow = {"slow": {"delays": {2: 0.05}}}
    [alone] = make(grid={"straggler": slow}).runs()
    both = make(grid={"straggler": {"none": {}, **slow}}).runs()
    assert alone.config.experiment == both[1].config.experiment == "x.slow"
    assert both[0].config.experiment == "x"


def test_duplicates__are_refused_by_the_names_of_both_arms(problems):
    text = "name: x\narms:\n- label: a\n- label: b\n  settings: {blocks: by_unit:17}\n"
    assert problems(text) == [
        "x.yaml:4: arms[1]: must differ; arms a and b are the same run. Remove one."
    ]


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("name: x\nbase:\n  epochs: 3\n", "x.yaml:3: base.epochs: is not a setting"),
        ("name: x\nbudgets: {}\n", "x.yaml:2: budgets: is not a setting"),
        ("name: x\nbudget: {step: 3}\n", "x.yaml:2: budget.step: is not a setting"),
        ("seeds: 2\n", "x.yaml:1: `name` must be given"),
        ("name: x\nbase: 3\n", "x.yaml:2: base: must be a mapping of settings"),
        (
            "name: x\nbase:\n  cluster:\n    workers: many\n",
            "x.yaml:4: base.cluster.workers: is not valid: input should be a valid int",
        ),
        (
            "name: x\ngrid:\n  algorithm:\n  - nd-cao\n  - adamm\n",
            "x.yaml:5: grid.algorithm[1]: must be one of nd-cao, activity-",
        ),
        (
            "name: x\ngrid:\n  algorithm:\n  - sgd\n  - {kind: nd-cao, window: 1}\n",
            "x.yaml:5: grid.algorithm[1].window: must be at least max(3, `probes`)",
        ),
        (
            "name: x\narms:\n- label: a\n  settings:\n   model:\n    hidden: [3, 0]\n",
            "x.yaml:6: arms[0].settings.model.hidden[1]: is not valid",
        ),
        (
            "name: x\narms:\n- {label: a, settings: {algorithm: sgd, mode: async}}\n",
            "x.yaml:3: arms[0].settings.mode: must be one of sync for algorithm sgd",
        ),
        (
            "name: x\narms:\n- label: a\n  settings: {algorithm: sgd, nd_cao.ridge: 1}",
            "x.yaml:4: arms[0].settings.nd_cao.ridge: must belong to the run's",
        ),
        (
            "name: x\ngrid:\n  how: {a: {budget: {steps: 0}}}\n",
            "x.yaml:3: grid.how.a.budget.steps: is not valid",
        ),
        ("name: x\ngrid:\n  seed: [1]\n", "x.yaml:3: grid.seed: must not be an axis"),
        ("name: x\ngrid:\n  mode: sync\n", "x.yaml:3: grid.mode: must be a list"),
        (
            "name: x\ngrid:\n  modes: [sync]\n",
            "x.yaml:3: grid.modes: must be a setting",
        ),
        ("name: x\ngrid: {}\n", "x.yaml:2: grid: must have at least one entry"),
        ("name: x\ngrid:\n  mode: []\n", "x.yaml:3: grid.mode: must have at least one"),
        (
            "name: x\ngrid: {mode: [sync]}\nexclude: [{mode: sync}]\n",
            "x.yaml:2: grid: must leave something to run",
        ),
        (
            "name: x\ngrid: {mode: [sync]}\nexclude:\n- mode: asynch\n",
            "x.yaml:4: exclude[0].mode: must be one of sync; got 'asynch'",
        ),
        ("name: x\nseeds: [1, 1]\n", "x.yaml:2: seeds: must differ"),
        ("name: x\nseeds: 0\n", "x.yaml:2: seeds: must be at least 1 and"),
        (
            "name: x\nseeds: 99999999999999999999\n",
            "x.yaml:2: seeds: must be at least 1",
        ),
        (
            "name: x\ngrid:\n"
            + "".join(
                f"  {name}: {list(range(1, 50))}\n"
                for name in ("nodes", "machines", "n_shards", "batch_size", "threads")
            ),
            "x.yaml:2: grid: must have at most 10,000 combinations; got 282,475,249",
        ),
        ("name: x\nseeds: [1, -1]\n", "x.yaml:2: seeds[1]: is not valid"),
        ("name: a b\n", "x.yaml:1: name: must be letters, digits"),
        (
            "name: x\ntarget: {test_accuracy: 0.9}\n",
            "x.yaml:2: target.test_accuracy: is not a setting",
        ),
        (
            "name: x\nbase:\n  mode: sync\n  mode: async\n",
            "x.yaml:4: base.mode: must stand once; it is in line 3",
        ),
        ("name: x\nbase:\n\tmode: sync\n", "x.yaml:3: must be indented with spaces"),
        ("name: x\nbase: {a: 1\nseeds: 3\n", "x.yaml:3: must be valid YAML"),
        ("- a\n", "x.yaml:1: must be a mapping of settings; got a sequence"),
        ("", "x.yaml:1: must be a mapping of settings; got nothing"),
        ("name: x\nbase: &a {b: *a}\n", "x.yaml:2: base.b: must not contain itself"),
    ],
)
def test_error__names_file_line_key_and_rule(problems, text, start):
    found = problems(text)
    assert any(problem.startswith(start) for problem in found), found


def test_error__names_the_arm_and_how_many_more_have_it(problems):
    [found] = problems("name: x\nbase: {epochs: 3}\ngrid: {mode: [sync, async]}\n")
    assert found.endswith("(arm sync-digits-nd-cao and 1 more)")


def test_error__all_that_is_wrong_is_said_at_once_in_the_order_of_lines(problems):
    text = "name: x\nbase:\n  epochs: 3\n  skew: 7\narms:\n- {label: a/b}\n"
    lines = [problem.split(":")[1] for problem in problems(text)]
    assert lines == ["3", "4", "6"]
