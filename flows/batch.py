"""What has become of an experiment's runs, and the cluster that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.environment import shared_cluster
from flows.outcome import diverged
from pipeline.config import ClusterConfig, RunConfig
from pipeline.leases import workers_needed

if TYPE_CHECKING:
    from pipeline.experiment import Experiment, PlannedRun

Say = Callable[[str], None]


@dataclass(slots=True)
class Batch:
    """What has become of an experiment's runs, by name."""

    name: str
    results: Path
    say: Say
    runs: tuple[PlannedRun, ...]
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    errors: dict[str, BaseException] = field(default_factory=dict)
    dashboard: str | None = None

    def skip_complete(self) -> list[PlannedRun]:
        """Note the runs that are complete; returns the others."""
        waiting = []
        for run in self.runs:
            line = self.kept(run)
            if line is None:
                waiting.append(run)
            else:
                self.skipped.add(run.name)
                self.note(run, line)
        return waiting

    def kept(self, run: PlannedRun) -> dict[str, Any] | None:
        """Summary line of a run that is stored; None if it is not."""
        from pipeline.runs import open_kept, summary
        from pipeline.train import stored

        store = stored(run.config, results=self.results)
        if store is None:
            return None
        line: dict[str, Any] = summary(open_kept(store))
        return line

    def note(self, run: PlannedRun, answer: Any) -> None:
        """Keep a run's summary line, or why there is none."""
        if isinstance(answer, BaseException):
            self.errors[run.name] = answer
            text = f"failed: {answer}"
        else:
            self.errors.pop(run.name, None)
            self.lines[run.name] = answer
            accuracy = answer["test_accuracy"]
            shown = "–" if accuracy is None else f"{accuracy:.4f}"
            text = (
                f"{answer['status']}, test accuracy {shown} "
                f"in {answer['wall_time_s']:.1f} s"
            )
        self.say(f"[{self.n_ended}/{len(self.runs)}] {run.name}: {text}")

    @property
    def n_ended(self) -> int:
        """Runs that are complete or have failed."""
        return len(self.lines) + len(self.errors)

    def stores(self, *, diverged_too: bool = False) -> list[str]:
        """Stores of the runs that are complete, and of those that diverged if asked."""
        return [
            line["store"]
            for line in self.lines.values()
            if line["status"] != "interrupted" and (diverged_too or not diverged(line))
        ]

    def without_store(self) -> list[str]:
        """Say which runs have none, and why."""
        failed = [f"{name}: failed, {error}" for name, error in self.errors.items()]
        ended = {
            name for name, line in self.lines.items() if line["status"] != "interrupted"
        }
        names = [run.name for run in self.runs]
        waiting = [n for n in names if n not in ended and n not in self.errors]
        return [*failed, *(f"{name}: not run to its end" for name in waiting)]

    def row(self, run: PlannedRun) -> dict[str, Any]:
        """One line of the final table."""
        line = self.lines.get(run.name, {})
        error = self.errors.get(run.name)
        status = line.get("status", "not run" if error is None else "failed")
        return {
            "run": run.name,
            "arm": run.arm,
            "seed": run.seed,
            "status": "complete (before)" if run.name in self.skipped else status,
            "test accuracy": line.get("test_accuracy"),
            "train loss": line.get("train_loss"),
            "wall time s": line.get("wall_time_s"),
            "why": str(error) if error else line.get("stop_reason", ""),
        }


def cluster_of(
    plan: Experiment, runs: Sequence[PlannedRun], given: ClusterConfig | None
) -> ClusterConfig:
    """Return the cluster that a batch shares.

    The one that is given, else the one that ``$NDCAO_SCHEDULER_FILE`` names, else the
    one in the experiment's base. A local one that is not given has as many workers as
    any of the runs asks for, and at least the base's.
    """
    chosen = given or shared_cluster()
    if chosen is not None:
        return chosen
    base = _base(plan).cluster
    if base.kind != "local" or base.adapt is not None:
        return base
    workers = max([base.workers, *(workers_needed(run.config) for run in runs)])
    return base.model_copy(update={"workers": workers})


def _base(plan: Experiment) -> RunConfig:
    """The configuration of the base alone; arms may be what makes it a valid one."""
    from pipeline.layers import Layer, validated

    settings = {
        key: value
        for key, value in plan.base.items()
        if key == "cluster" or key.startswith("cluster.")
    }
    base = validated([Layer.at(("base",), settings, lenient=True)])
    assert isinstance(base, RunConfig), base  # a part of what was checked in every arm
    return base
