"""From an experiment to its runs: arms, what is left out, names, folders, seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.arms import Arm, Dropped, grid_arms, name_of
from pipeline.axes import NO_NAME, PLAIN, Axis, read_axes, wrong_label
from pipeline.config import RunConfig
from pipeline.layers import Layer, validated
from pipeline.marked_yaml import FileError, Marked, Place

if TYPE_CHECKING:
    from pipeline.experiment import Experiment

MAX_COMBINATIONS = 10_000
_NOT_HIDDEN = {"experiment", "dataset", "seed"}
_FILLED = ("blocks", "loss_samples", "redraw_every", "nodes", "machines")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a batch: ``name`` is ``<arm>-s<seed>``, ``labels`` are by axis."""

    name: str
    arm: str
    seed: int
    config: RunConfig
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an experiment runs, in order, and what it leaves out."""

    runs: tuple[PlannedRun, ...]
    dropped: tuple[Dropped, ...]


@dataclass(slots=True)
class _Findings:
    """Problems by place and text, with the arms that have them."""

    marked: Marked
    arms: dict[tuple[Place, str], list[str]] = field(default_factory=dict)

    def add(self, place: Place, text: str, arm: str = "") -> None:
        self.arms.setdefault((place, text), []).append(arm)

    def check(self) -> None:
        """Raise what has been found."""
        problems = []
        for (place, text), arms in self.arms.items():
            named = [arm for arm in arms if arm]
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            where = f" (arm {named[0]}{more})" if named else ""
            problems.append(self.marked.problem(place, text + where))
        if problems:
            raise FileError(problems)


def plan(experiment: Experiment, marked: Marked) -> Plan:
    """Return an experiment's runs: every arm with the first seed, then with the next.

    So a batch that is stopped has whole pairs.

    Raises
    ------
    FileError — naming file, line, key and arm of everything that is wrong.
    """
    findings = _Findings(marked)
    base = _base_layers(experiment, findings)
    wrong: list[tuple[Place, str]] = []
    axes = read_axes(experiment.grid, wrong)
    for where, text in wrong:
        findings.add(where, text)
    _check_rules(experiment.exclude, axes, findings)
    combinations = math.prod(len(axis.values) for axis in axes)
    if combinations > MAX_COMBINATIONS:
        rule = f"must have at most {MAX_COMBINATIONS:,} combinations; got "
        findings.add(("grid",), f"{rule}{combinations:,}. Make several experiments.")
    findings.check()
    dropped: list[Dropped] = []
    arms = list(grid_arms(axes, base, experiment.exclude, dropped))
    for index, arm in enumerate(experiment.arms):
        place: Place = ("arms", index)
        layer = Layer.at((*place, "settings"), arm.settings)
        arms.append(Arm(arm.label, {}, (*base, layer), place))
    if not arms and experiment.grid:
        findings.add(("grid",), "must leave something to run; everything is dropped.")
    elif not arms:
        arms.append(Arm(name_of(base, ()), {}, base, ("base",)))
    configs = _configs(experiment.name, arms, findings)
    findings.check()
    runs = tuple(
        PlannedRun(
            f"{arm.label}-s{seed}",
            arm.label,
            seed,
            config.model_copy(update={"seed": seed}),
            arm.labels,
        )
        for seed in experiment.seeds
        for arm, config in zip(arms, configs, strict=True)
    )
    return Plan(runs, tuple(dropped))


def _base_layers(experiment: Experiment, findings: _Findings) -> tuple[Layer, ...]:
    """What every arm starts from: the base, then the budget."""
    base = Layer.at(("base",), experiment.base, lenient=True)
    if experiment.budget is None:
        return (base,)
    if "budget" in experiment.base:
        text = "must be given once; `base` has one too. Remove one."
        findings.add(("budget",), text)
    limits = experiment.budget.model_dump(exclude_none=True)
    return (base, Layer({"budget": limits}, {"budget": ("budget",)}))


def _check_rules(
    rules: Sequence[Mapping[str, Any]], axes: Sequence[Axis], findings: _Findings
) -> None:
    by_name = {axis.name: axis for axis in axes}
    for index, rule in enumerate(rules):
        if not rule:
            findings.add(("exclude", index), "must name an axis; got none.")
        for name, wanted in rule.items():
            place = ("exclude", index, name)
            if name not in by_name:
                text = f"must be an axis of `grid`: {', '.join(by_name) or 'none'}."
                findings.add(place, text)
                continue
            axis = by_name[name]
            for one in wanted if isinstance(wanted, list) else [wanted]:
                if not axis.chosen(one):
                    known = ", ".join(value.label for value in axis.values)
                    findings.add(place, f"must be one of {known}; got {one!r}.")


def _configs(name: str, arms: Sequence[Arm], findings: _Findings) -> list[RunConfig]:
    """Return every arm's configuration, in its folder; no two may be the same."""
    configs, labels, identities = [], set(), dict[str, str]()
    for arm in arms:
        if not PLAIN.match(arm.label):
            findings.add((*arm.place, "label"), wrong_label(arm.label))
        if arm.label in labels:
            text = f"must name every arm differently; got {arm.label} twice. Rename it."
            findings.add(_place_of_label(arm), text)
        labels.add(arm.label)
        config = validated(arm.layers)
        if isinstance(config, list):
            for place, text in config:
                findings.add(place or arm.place, text, arm.label)
            continue
        folder = _folder(name, arm, config)
        config = config.model_copy(update={"experiment": folder})
        same = identities.setdefault(_identity(config), arm.label)
        if same != arm.label:
            text = f"must differ; arms {same} and {arm.label} are the same run."
            findings.add(arm.place, f"{text} Remove one.")
        configs.append(config)
    return configs


def _place_of_label(arm: Arm) -> Place:
    return (*arm.place, "label") if arm.place[0] == "arms" else arm.place


def _folder(name: str, arm: Arm, config: RunConfig) -> str:
    """Return the results' folder: the experiment's name, and a suffix where needed.

    A run's id leaves out what does not change the mathematics, such as the delays of a
    synchronous run. An arm that sets such things otherwise than the base would find
    the run of another arm and take it for its own, so it gets a folder of its own. The
    suffix depends on that arm alone: editing others moves no run.
    """
    hidden = set(RunConfig.model_fields) - set(config.mathematics()) - _NOT_HIDDEN
    base, *others = arm.layers
    plain = validated([base, *(_without(layer, hidden) for layer in others)])
    if isinstance(plain, RunConfig) and all(
        getattr(plain, key) == getattr(config, key) for key in hidden
    ):
        return name
    names = [value.label for axis, value in arm.values if axis.sets(hidden)]
    named = [name for name in names if name != NO_NAME]
    return f"{name}.{'-'.join(named) or arm.label}"


def _without(layer: Layer, hidden: set[str]) -> Layer:
    kept = {k: v for k, v in layer.settings.items() if k.split(".")[0] not in hidden}
    return Layer(kept, {k: layer.places[k] for k in kept}, layer.lenient)


def _identity(config: RunConfig) -> str:
    """What makes two runs the same, as far as it is known without the data."""
    known = config.mathematics()
    defaults = {"redraw_every": 0, **config.algorithm.defaults}
    for key in _FILLED:
        known[key] = defaults.get(key) if known[key] is None else known[key]
    if not config.algorithm.blockwise:
        known["blocks"] = "all"
    return json.dumps([config.experiment, config.dataset, known], sort_keys=True)
