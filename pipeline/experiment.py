"""Experiments as files: a base, a grid or arms, seeds; validated with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.arms import Dropped
from pipeline.axes import PLAIN
from pipeline.config import Budget, Section, explain_one
from pipeline.marked_yaml import FileError, Marked, read_marked
from pipeline.places import given_path
from pipeline.planning import Plan, PlannedRun, plan

__all__ = [
    "Dropped",
    "Experiment",
    "FileError",
    "NamedArm",
    "PlannedRun",
    "Target",
    "load_experiment",
    "shipped_experiments",
]

# A folder beside the packages: in a checkout, and where a wheel is installed.
SHIPPED = Path(__file__).resolve().parents[1] / "experiments"
_SUFFIXES = (".yaml", ".yml")

MAX_SEEDS = 10_000
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Share = Annotated[float, Field(gt=0, le=1)]
Loss = Annotated[float, Field(gt=0)]


class Target(Section):
    """What a report asks when runs have reached it. Test data are no target."""

    val_accuracy: Share | None = None
    val_loss: Loss | None = None
    train_loss: Loss | None = None

    @model_validator(mode="after")
    def _some(self) -> Target:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError(
                "`target` must set val_accuracy, val_loss or train_loss; got none. "
                "Write for example target: {val_accuracy: 0.9}."
            )
        return self


class NamedArm(Section):
    """Settings that go over the base, under a name."""

    label: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Experiment(Section):
    """A batch of runs: settings, the ways in which they vary, and the seeds of each.

    ``budget`` is what arms have that set none of their own; ``target`` is only kept for
    reports. ``name`` is also the folder of the results. See docs/experiments.md.
    """

    name: str
    description: str = ""
    base: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    arms: tuple[NamedArm, ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    budget: Budget | None = None
    target: Target | None = None
    _marked: Marked | None = PrivateAttr(default=None)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not PLAIN.match(value):
            raise ValueError(
                "`name` must be letters, digits, '-', '_' and '.', as it names a "
                f"folder; got {value!r}. Rename it."
            )
        return value

    @field_validator("grid", "arms")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not value:
            raise ValueError("must have at least one entry; got none. Leave it out.")
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= MAX_SEEDS:
                raise ValueError(
                    f"`seeds` must be at least 1 and at most {MAX_SEEDS:,}; got "
                    f"{value}. Write a number of seeds, or a list of them."
                )
            return tuple(range(value))
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(
                f"`seeds` must differ; got {list(value)}. Remove what is there twice."
            )
        return value

    @property
    def source(self) -> str:
        """The file that the experiment was read from, or its name."""
        return self._marked.file if self._marked else self.name

    def plan(self) -> Plan:
        """Return what is run, in order, and what is left out, and why.

        Raises
        ------
        FileError — naming file, line, key and arm of everything that is wrong.
        """
        return plan(self, self._marked or Marked(None, self.name))

    def runs(self) -> tuple[PlannedRun, ...]:
        """Return the runs: every arm with the first seed, then with the next."""
        return self.plan().runs

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """Combinations of the grid that are not run."""
        return self.plan().dropped


def load_experiment(path_or_name: str | Path) -> Experiment:
    """Return an experiment from a YAML file, or a shipped one by its name.

    Every run's configuration is checked.

    Parameters
    ----------
    path_or_name : what has a folder or ends in ``.yaml`` is a file, all else a name.

    Raises
    ------
    FileNotFoundError — if there is no such file or shipped experiment.
    FileError (a ValueError) — a line for everything that is wrong: file, line, key.
    """
    marked = read_marked(find_experiment(path_or_name))
    try:
        experiment = Experiment.model_validate(marked.data)
    except ValidationError as err:
        raise FileError(_problem(marked, one) for one in err.errors()) from err
    experiment._marked = marked
    experiment.plan()
    return experiment


def find_experiment(path_or_name: str | Path) -> Path:
    """Return the file of an experiment given as ``load_experiment`` takes it."""
    path = given_path(path_or_name, "experiment")
    named = path.suffix not in _SUFFIXES and len(path.parts) == 1
    file = shipped_experiments().get(str(path)) if named else path
    if file is None or not file.is_file():
        names = ", ".join(shipped_experiments())
        raise FileNotFoundError(
            f"`experiment` must be an existing YAML file, or one of {names}; got "
            f"{path_or_name}. See `ndcao experiment list`."
        )
    return file


def shipped_experiments() -> dict[str, Path]:
    """Return the files of the experiments that come with ndcao, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def _problem(marked: Marked, found: Any) -> Any:
    """Turn one of pydantic's findings into a line of the file."""
    place = tuple(found["loc"])
    text = explain_one(found)
    if found["type"] == "missing":
        text = "must be given. Add it."
        return marked.problem(place[:-1], f"`{place[-1]}` {text}")
    for known in (".".join(map(str, place)), str(place[-1]) if place else ""):
        text = text.removeprefix(f"`{known}` ")
    return marked.problem(place, text)
