"""Settings of the cluster: where a run computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Count, Section

Kind = Literal[
    "local",
    "in-process",
    "address",
    "scheduler-file",
    "cuda",
    "jobqueue",
    "kubernetes",
]
System = Literal["slurm", "pbs", "sge", "lsf", "htcondor", "moab", "oar"]
OF_A_KIND = ("adapt", "address", "scheduler_file", "system", "options", "tls")
NOT_RECORDED = "(not recorded)"
SCALING = ("local", "jobqueue", "kubernetes")  # kinds that can start more workers


class TlsConfig(Section):
    """Files of the certificates that client, scheduler and workers show each other."""

    ca_file: str
    cert: str
    key: str


class ClusterConfig(Section):
    """Where the run computes; never part of a synchronous run's identity.

    ``adapt`` = (least, most) lets the cluster start and close workers between these
    bounds; ``workers`` is then what one run uses at most, and ``most`` by default.
    """

    kind: Kind = "local"
    workers: Count = 2
    adapt: tuple[Count, Count] | None = None
    address: str | None = None
    scheduler_file: str | None = None
    system: System | None = None  # jobqueue only
    # of dask-jobqueue's or dask-kubernetes' own class
    options: dict[str, Any] = Field(default_factory=dict)
    tls: TlsConfig | None = None  # none = what Dask itself is configured to do
    only: tuple[str, ...] = ()  # names of the workers it may use; none = all
    resource: str | None = None  # a Dask worker resource every task needs, such as GPU
    start_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    task_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    dashboard: bool = True

    @model_validator(mode="before")
    @classmethod
    def _all_of_them(cls, data: Any) -> Any:
        """``workers``, if left out, is the most that ``adapt`` allows."""
        if not isinstance(data, Mapping):
            return data
        adapt = data.get("adapt")
        if "workers" in data or not isinstance(adapt, list | tuple) or len(adapt) != 2:
            return data
        return {**data, "workers": adapt[1]}

    @model_validator(mode="after")
    def _target(self) -> ClusterConfig:
        if self.kind == "address" and not self.address:
            raise ValueError(
                "`cluster.address` must name a scheduler such as tcp://host:8786 when "
                "`cluster.kind` is address; got nothing. Pass --address."
            )
        if self.kind == "scheduler-file" and not self.scheduler_file:
            raise ValueError(
                "`cluster.scheduler_file` must name a file when `cluster.kind` is "
                "scheduler-file; got nothing. Pass --scheduler-file."
            )
        if self.kind == "jobqueue" and not self.system:
            raise ValueError(
                "`cluster.system` must name the queue when `cluster.kind` is jobqueue; "
                "got nothing. Use slurm, pbs, sge, lsf, htcondor, moab or oar."
            )
        return self

    @model_validator(mode="after")
    def _bounds(self) -> ClusterConfig:
        if self.adapt is None:
            return self
        least, most = self.adapt
        if least > most:
            raise ValueError(
                "`cluster.adapt` must be [least, most] workers; got "
                f"{list(self.adapt)}. Swap them."
            )
        if self.kind not in SCALING:
            raise ValueError(
                "`cluster.adapt` must be left out when `cluster.kind` is "
                f"{self.kind}, whose workers we do not start; got {list(self.adapt)}. "
                f"Use it with {', '.join(SCALING)}."
            )
        return self


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Settings ``old`` with ``new`` over them; another kind drops what was the old's.

    Workers, the resource, time limits and the like are kept.
    """
    same = new.get("kind", old.get("kind", "local")) == old.get("kind", "local")
    kept = {k: v for k, v in old.items() if same or k not in OF_A_KIND}
    return {**kept, **new}


def recorded(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as runs keep them: which options there were, and none of their values.

    Values may be passwords, tokens, variables of pods or paths of keys, and a record is
    made to be shown.
    """
    kept = dict(cluster)
    for name in ("options", "tls"):
        if isinstance(kept.get(name), Mapping):
            kept[name] = dict.fromkeys(kept[name], NOT_RECORDED)
    return kept


def check_complete(cluster: ClusterConfig) -> None:
    """Refuse settings of a record that lack what a record does not keep.

    Raises
    ------
    ValueError — naming what must be given again.
    """
    tls = {} if cluster.tls is None else cluster.tls.model_dump()
    for name, values in (("options", cluster.options), ("tls", tls)):
        missing = [key for key, value in values.items() if value == NOT_RECORDED]
        if missing:
            raise ValueError(
                f"`cluster.{name}` must be given again to go on, as a run keeps "
                f"nothing that may be secret; got no {', '.join(missing)}. Pass "
                "--config FILE with the `cluster:` section, or go on elsewhere with "
                "--address."
            )


def without_secrets(record: str) -> str:
    """Return the JSON of a run's settings, of an older version too, without secrets."""
    try:
        data = json.loads(record)
    except ValueError:
        return record  # whoever reads it says what is wrong
    if not isinstance(data, dict) or not isinstance(data.get("cluster"), dict):
        return record
    return json.dumps({**data, "cluster": recorded(data["cluster"])})
