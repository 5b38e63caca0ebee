"""Every user-facing setting: validated, frozen, and written whole into the results."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from blocks import ALGORITHMS
from blocks.precision import Precision
from pipeline.cluster_config import ClusterConfig as ClusterConfig
from pipeline.cluster_config import recorded
from pipeline.config_rules import check_consistent
from pipeline.marked_yaml import Marked, Place, read_marked
from pipeline.rules import difference, former, rules_of
from pipeline.section import Count, Seconds
from pipeline.section import Section as Section
from pipeline.settings import copied, located, merged, override

SHOWN = 200  # characters of a wrong value

if TYPE_CHECKING:
    AnyAlgorithm = Any
else:
    AnyAlgorithm = Annotated[
        Union[tuple(ALGORITHMS.values())],  # noqa: UP007  (built from the registry)
        Field(discriminator="kind"),
    ]


class ModelConfig(Section):
    """The network: a built-in name or the user's own ``package.module:factory``."""

    name: str = "mlp"
    hidden: tuple[Count, ...] | None = None  # mlp only; None = the model's default
    options: dict[str, Any] = Field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the factory."""
        hidden = {} if self.hidden is None else {"hidden": self.hidden}
        return {**hidden, **self.options}


class Budget(Section):
    """When a run ends: at the first of these that is reached.

    ``steps`` counts updates of every block, ``loss_values`` scored parameter vectors
    (K a version), ``samples`` samples passed forward for training, ``bytes`` messages
    and records moved, ``seconds`` training wall time.
    """

    steps: Count | None = None
    loss_values: Count | None = None
    samples: Count | None = None
    gradient_evals: Count | None = None
    bytes: Count | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _some(self) -> Budget:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError(
                "`budget` must set at least one of steps, loss_values, samples, "
                "gradient_evals, bytes, seconds; got none. Try `--budget steps=1000`."
            )
        return self


class RunConfig(Section):
    """One training run. ``None`` means: the algorithm's or the data's own default."""

    dataset: str = "digits"
    model: ModelConfig = ModelConfig()
    algorithm: AnyAlgorithm = Field(default_factory=lambda: ALGORITHMS["nd-cao"]())
    blocks: str | None = None
    custom_blocks: tuple[str, ...] = ()
    loss: str = "cross-entropy"
    budget: Budget = Budget(steps=300)
    mode: Literal["sync", "async"] = "sync"
    staleness: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    loss_samples: Count | None = None
    redraw_every: Annotated[int, Field(ge=0)] | None = None
    n_shards: Count = 4
    centring: Literal["pixel", "channel"] = "pixel"  # mean that inputs are rid of
    batch_size: Count = 2000  # samples of one forward pass while scoring
    eval_every: Count | None = None  # rounds between scorings of train, val and test
    checkpoint_every_s: Seconds = 30.0
    # block index → extra seconds at every update
    delays: dict[int, Seconds] = Field(default_factory=dict)
    own_worker: tuple[int, ...] = ()  # blocks that get a worker of their own
    nodes: Count | None = None  # replicas of a replica method
    machines: Count | None = None  # that the replicas are grouped on
    latency_s: Seconds = 0.0  # extra, of what is sent between two machines
    skew: Annotated[float, Field(ge=0, le=1)] = 0.0  # share dealt class by class
    init: str | None = None
    threads: Count = 1
    device: Literal["cpu", "cuda"] = "cpu"
    evaluation_form: Literal["auto", "loop", "vmap", "bmm", "pairs"] = "auto"
    precision: Precision = "float32"  # of products while probes and points are scored
    pipelined: bool = False  # activity perturbation: each worker keeps its layers
    experiment: str = "default"
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("dataset", "blocks", "loss", "init")
    @classmethod
    def _named(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not value.strip():
            raise ValueError(
                f"`{info.field_name}` must not be empty; got {value!r}. Name one, or "
                "leave it out."
            )
        return value

    @field_validator("experiment")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if (
            not value
            or not all(c.isalnum() or c in "-_." for c in value)
            or value[0] == "."
        ):
            raise ValueError(
                "`experiment` must be letters, digits, '-', '_' and '.', as it names a "
                f"folder; got {value!r}. Rename it."
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        check_consistent(self)
        return self

    @property
    def staleness_bound(self) -> int | None:
        """Steps a node may be ahead of the slowest: 0 = barrier, None = no bound."""
        return 0 if self.mode == "sync" else self.staleness

    @property
    def barrier(self) -> bool:
        """Whether every version waits for every block."""
        return self.staleness_bound == 0

    @property
    def in_pieces(self) -> bool:
        """Whether workers run bounded pieces by themselves, with no client between."""
        return self.barrier or self.pipelined

    def record(self) -> str:
        """JSON of all settings as a run keeps them, without what may be secret."""
        cluster = ClusterConfig(**recorded(self.cluster.model_dump()))
        return self.model_copy(update={"cluster": cluster}).model_dump_json()

    def mathematics(self) -> dict[str, Any]:
        """What the result depends on; the run id's hash covers exactly this."""
        data = self.model_dump(mode="json")
        left_out = [
            "cluster",
            "experiment",
            "eval_every",
            "checkpoint_every_s",
            "dataset",
        ]
        if self.barrier:
            left_out += ["delays", "own_worker", "latency_s", "pipelined"]
        if self.precision == "float32":
            left_out.append("precision")
        for name in left_out:
            data.pop(name)
        if not self.barrier:
            data["workers"] = self.cluster.workers
            data["clock"] = self.clock
        return data

    @property
    def clock(self) -> str:
        """What an asynchronous run's order of events, and its times, come from."""
        in_process = self.cluster.kind == "in-process"
        return "virtual" if in_process and not self.in_pieces else "wall"

    def run_id(
        self,
        dataset_name: str,
        content_sha256: str,
        init_sha256: str = "",
        code_sha256: str = "",
    ) -> str:
        """``<algorithm>-<mode>-<dataset>-s<seed>-<hash>``.

        The hash covers the contents of the data set and of the parameters to start from
        (``init_sha256``), not the paths where they lie; the names of the
        ``pipeline.rules`` that the run follows; and the user's own code, if there is
        any (``user_code.UserCode.digest``).
        """
        named = (dataset_name, content_sha256, init_sha256)
        return self._run_id(*named, rules_of(self), code_sha256)

    def former_ids(
        self,
        dataset_name: str,
        content_sha256: str,
        init_sha256: str = "",
        code_sha256: str = "",
    ) -> dict[str, str]:
        """Ids that the same run had in older versions, and what has changed since."""
        named = (dataset_name, content_sha256, init_sha256)
        found = {
            self._run_id(*named, rules, code_sha256): difference(self, rules)
            for rules in former(self)
        }
        if code_sha256:
            why = "which did not look at the code of the user's own model or loss"
            for rules in (rules_of(self), *former(self)):
                changed = [text for text in (why, difference(self, rules)) if text]
                found[self._run_id(*named, rules, "")] = "; ".join(changed)
        return found

    def _run_id(
        self, name: str, content: str, init: str, rules: tuple[str, ...], code: str
    ) -> str:
        payload = {"data": content, **self.mathematics(), "init": init}
        if rules:
            payload["rules"] = rules
        if code:
            payload["code"] = code
        text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.algorithm.kind}-{self.mode}-{name}-s{self.seed}-{digest}"


def load_config(
    path: Path | None = None,
    overrides: list[str] | None = None,
    flags: dict[str, Any] | None = None,
) -> RunConfig:
    """Build a run's configuration: file, then flags, then ``--set`` overrides.

    Parameters
    ----------
    path : a YAML file, or None for the defaults.
    overrides : ``key.path=value`` texts; the value is YAML. ``nd_cao.window=100`` (an
        algorithm's name with ``_``) addresses that algorithm's settings.
    flags : nested mapping that is merged over the file.

    Raises
    ------
    FileNotFoundError — if there is no such file.
    ValueError — naming the key, the rule and the value, and file and line where the
    file is wrong.
    """
    if path is None:
        marked = Marked({}, "")
    elif path.is_file():
        marked = read_marked(path)
    else:
        raise FileNotFoundError(f"`config` must be an existing YAML file; got {path}.")
    data = merged(copied(marked.data), copied(flags or {}))
    for text in overrides or []:
        override(data, text)
    try:
        return validate_config(data)
    except ValueError as err:
        found = problems_of(err)
        raise ValueError("\n".join(located(marked, data, *p) for p in found)) from err


def validate_config(data: dict[str, Any]) -> RunConfig:
    """``RunConfig`` from plain data, with one readable error a wrong key."""
    data = dict(data)
    algorithm = data.get("algorithm")
    if isinstance(algorithm, str):
        data["algorithm"] = {"kind": algorithm}
    elif isinstance(algorithm, dict):
        data["algorithm"] = {"kind": "nd-cao", **algorithm}
    if "algorithm" in data:
        named = isinstance(data["algorithm"], dict)
        kind = data["algorithm"]["kind"] if named else data["algorithm"]
        if not isinstance(kind, str) or kind not in ALGORITHMS:
            raise ValueError(
                f"`algorithm` must be one of {', '.join(ALGORITHMS)}; got "
                f"{shown(kind)}. See `ndcao algorithms`."
            )
        if "sync" not in ALGORITHMS[kind].modes:
            data.setdefault("mode", "async")
    try:
        return RunConfig.model_validate(data)
    except ValidationError as err:
        raise ValueError(explain(err)) from err


def problems_of(err: ValueError) -> list[tuple[Place, str]]:
    """Return what ``validate_config`` found: the place in the settings, and a text."""
    cause = err.__cause__
    if not isinstance(cause, ValidationError):
        return [((), str(err))]
    found = [(_place(one["loc"]), explain_one(one)) for one in cause.errors()]
    return list(dict.fromkeys(found))


def _place(loc: Place) -> Place:
    """Return where a finding is, without pydantic's tag of the algorithm's union."""
    return tuple(
        part
        for before, part in itertools.pairwise((None, *loc))
        if not (before == "algorithm" and part in ALGORITHMS)
    )


def explain(err: ValidationError) -> str:
    """One line a problem: key, rule, value."""
    return "\n".join(dict.fromkeys(explain_one(p) for p in err.errors()))


def explain_one(problem: Any) -> str:
    """One of pydantic's findings as a sentence: key, rule, value."""
    where = [str(p) for p in _place(problem["loc"])]
    key = ".".join(where) or "configuration"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        if (kind := key.replace("_", "-")) in ALGORITHMS:
            return (
                f"`{key}` must not be a section of its own. Write `algorithm: "
                f"{{kind: {kind}, …}}` in a file, or {key}.SETTING=VALUE after --set."
            )
        return f"`{key}` is not a setting. Check its spelling in the docs."
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        got = "nothing" if problem["input"] is None else shown(problem["input"])
        rule = f"`{key}` must be a mapping of settings; got {got}."
        return f"{rule} Write them below it, or leave it out."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"`{key}` is not valid: {message}; got {shown(problem['input'])}."


def shown(value: Any) -> str:
    """Return a value as an error shows it: in quotes, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
