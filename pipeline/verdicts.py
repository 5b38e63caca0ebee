"""What the statistics of compared runs say, in sentences that claim no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import xarray as xr

from pipeline.alignment import budget_named, evaluations, last_budgets
from pipeline.comparisons import common_budget, difference_at
from pipeline.estimates import MIN_PAIRS, Estimate, LeftOut
from pipeline.pairing import Pairs, pair_runs
from pipeline.reaching import speed_to_target
from pipeline.schema import VARIABLES
from pipeline.series import Group
from pipeline.targets import first_reached
from pipeline.verdict_sides import Sides, sides_of
from pipeline.verdict_targets import Aim, aim_of

__all__ = ["MAX_VERDICTS", "Verdict", "verdicts"]

MAX_VERDICTS = 24


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one comparison shows: a sentence a figure, and what it could not use."""

    title: str
    sentences: tuple[str, ...]
    figures: tuple[Estimate, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def verdicts(
    ds: xr.Dataset,
    groups: Sequence[Group],
    target: Mapping[str, float] | None = None,
) -> tuple[Verdict, ...]:
    """Return what the runs show about their modes, and against gradient baselines.

    Parameters
    ----------
    ds : Dataset — from `pipeline.compare.loaded`.
    groups : from `pipeline.series.group_runs`.
    target : ``{"val_accuracy": 0.9}``: what the time is taken to. The default is chosen
        for each comparison, by the rule of `pipeline.verdict_targets.aim_of`.

    Returns
    -------
    At most 24 verdicts, those about modes first. Each figure names its budget, method
    and n; below 3 pairs a sentence refuses to claim and gives the values of the pairs.

    Raises
    ------
    ValueError — if ``target`` names none of `pipeline.targets.METRICS`.
    """
    return tuple(
        _verdict(ds, sides, target)
        for sides in islice(sides_of(ds, groups), MAX_VERDICTS)
    )


def _verdict(
    ds: xr.Dataset, sides: Sides, target: Mapping[str, float] | None
) -> Verdict:
    name = f"{sides.names[0]} vs {sides.names[1]}"
    try:
        pairs = pair_runs(ds, sides.first.runs, sides.second.runs, name)
    except ValueError as err:  # two runs of one seed: whose figure would it be?
        return Verdict(sides.title, (f"Not compared: {err}",))
    if not len(pairs):
        why = "No claim: no seed has been run on both sides."
        return Verdict(sides.title, (why,), left_out=pairs.left_out)
    runs = (*pairs.first, *pairs.second)
    found, notes = [], []
    clocks = {*ds["clock"].values[list(runs)].tolist()}
    if len(clocks) > 1:
        notes.append("Times of one side are simulated: they are not compared.")
    else:
        found.append(_speed(ds, pairs, sides.names, aim_of(ds, runs, target)))
        notes += ["Times are those of a simulated cluster."] * (clocks == {"virtual"})
    if sides.about_modes:
        found.append(_at_equal(ds, pairs, sides.names, "update"))
    else:
        found.append(_at_equal(ds, pairs, sides.names, "samples"))
        found.append(_at_their_ends(ds, pairs, sides.names))
    figures = tuple(figure for _, figure in found if figure is not None)
    notes += dict.fromkeys(note for figure in figures for note in figure.notes)
    left_out = dict.fromkeys(
        (*pairs.left_out, *(x for f in figures for x in f.left_out))
    )
    sentences = tuple(text for text, _ in found)
    return Verdict(sides.title, sentences, figures, tuple(left_out), tuple(notes))


Found = tuple[str, Estimate | None]


def _speed(ds: xr.Dataset, pairs: Pairs, names: tuple[str, str], aim: Aim) -> Found:
    first, second = names
    if math.isnan(aim.target):
        return f"No figure about the time to a target: {aim.rule}.", None
    goal = f"{aim.target:g} {VARIABLES[aim.metric].long_name}"
    reach = first_reached(ds, aim.metric, aim.target, "wall_time")
    if (reach["reached_at"].values[[*pairs.first, *pairs.second]] == 0).any():
        return f"No figure about the time to {goal}: a run starts there.", None

    def figure(some: Pairs) -> Estimate:
        return speed_to_target(ds, some, aim.metric, aim.target, "wall_time")

    found = figure(pairs)
    if found.n < MIN_PAIRS:
        text = _refusal(f"wall time to {goal}, {first} ÷ {second}", pairs, figure)
    else:
        shown = _shown(found, 1.0, ("faster", "slower"))
        of = "times" if found.estimate >= 1 else "of"
        text = (
            f"{first} reached {goal} in {_figure(found, _ratio)} {of} {second}'s wall "
            f"time, {_basis(found)}: {shown}."
        )
    return f"{text} Target: {aim.rule}.", found


def _at_equal(
    ds: xr.Dataset, pairs: Pairs, names: tuple[str, str], budget: str
) -> Found:
    label = budget_named(budget).label.lower()
    at = common_budget(ds, (*pairs.first, *pairs.second), budget)
    if math.isnan(at):
        return f"No figure at equal {label}: no run used its own budget up.", None
    curves = evaluations(ds, "test_accuracy", budget)
    for name, runs in zip(names, (pairs.first, pairs.second), strict=True):
        if any(_only_started(curves[run][0], at) for run in runs):
            why = f"by then {name} had been evaluated at its start only"
            return f"No figure at equal {label} ({at:,.6g}): {why}.", None
    return _difference(ds, pairs, names, budget, at, f"at equal {label} ({at:,.6g})")


def _only_started(budgets: np.ndarray, at: float) -> bool:
    """Whether a run that trained on has no evaluation up to ``at`` but its first."""
    return len(budgets) > 1 and not ((budgets > 0) & (budgets <= at)).any()


def _at_their_ends(ds: xr.Dataset, pairs: Pairs, names: tuple[str, str]) -> Found:
    part = ds.isel(run=[*pairs.first, *pairs.second])
    last = last_budgets(part, "samples")
    if np.isnan(last).all():
        return "No figure at the runs' ends: none of them used samples.", None
    where = f"when each has used its own budget (up to {np.nanmax(last):,.12g} samples)"
    return _difference(ds, pairs, names, "samples", float(np.nanmax(last)), where)


def _difference(
    ds: xr.Dataset,
    pairs: Pairs,
    names: tuple[str, str],
    budget: str,
    at: float,
    where: str,
) -> Found:
    def figure(some: Pairs) -> Estimate:
        return difference_at(ds, some, "test_accuracy", budget, at)

    found = figure(pairs)
    about = f"test accuracy {where}, {names[0]} − {names[1]}"
    if found.n < MIN_PAIRS:
        return _refusal(about, pairs, figure), found
    shown = _shown(found, 0.0, ("lower", "higher"))
    text = f"{about}: {_figure(found, _signed)}, {_basis(found)}: {shown}."
    return text[0].upper() + text[1:], found


def _refusal(about: str, pairs: Pairs, figure: Callable[[Pairs], Estimate]) -> str:
    """Return why nothing is claimed, with the value of every pair."""
    each, n = [], 0
    for a, b, seed, stratum in zip(
        pairs.first, pairs.second, pairs.seeds, pairs.strata, strict=True
    ):
        one = replace(
            pairs,
            first=(a,),
            second=(b,),
            seeds=(seed,),
            strata=(stratum,),
            left_out=(),
        )
        found = figure(one)
        n += found.n
        value = found.estimate
        text = "none" if math.isnan(value) else f"{value:.3g}".replace("-", "−")
        each.append(f"seed {seed}: {text}")
    count = f"n = {n} {'pair' if n == 1 else 'pairs'}"
    return f"No claim about {about}: {count}, it takes {MIN_PAIRS} ({'; '.join(each)})."


def _figure(found: Estimate, text: Callable[[float], str]) -> str:
    return f"{text(found.estimate)} [{text(found.low)}, {text(found.high)}]"


def _ratio(value: float) -> str:
    if math.isnan(value):
        return "an open share"
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _signed(value: float) -> str:
    return "open" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _basis(found: Estimate) -> str:
    return f"n = {found.n} {found.unit} ({found.method}, {found.level:.0%})"


def _shown(found: Estimate, nothing: float, words: tuple[str, str]) -> str:
    """Return what the interval shows: the first word where it is below ``nothing``."""
    if found.excludes(nothing):
        return words[int(found.low > nothing)]
    return "no difference shown"
