"""Runs that are projected on the virtual clock, and measured on a local cluster."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.asynchronous import Evaluator, FreeTraining, Sums
from pipeline.config import RunConfig, validate_config
from pipeline.context import Context, RunSpec, context_of
from pipeline.data_store import open_store
from pipeline.harness import SPLITS
from pipeline.resolve import resolve
from pipeline.scoring import Scored
from pipeline.train import train
from pipeline.virtual import Costs, VirtualExecutor

NEVER = 10**9
MODES = ("sync", "async")


@dataclass(frozen=True, slots=True)
class Case:
    """A run's settings, and what its blocks wait at every update."""

    store: Path
    settings: dict[str, Any]  # dataset, model, algorithm, loss_samples, n_shards, …
    n_blocks: int
    delay_s: float = 0.0  # of every block
    straggler_s: float = 0.0  # of block 0, in runs with a straggler, on top

    def config(
        self, mode: str, straggler: bool, n_workers: int, versions: int
    ) -> RunConfig:
        """Settings of one run; a straggler has a worker of its own if there are two."""
        delays = dict.fromkeys(range(self.n_blocks), self.delay_s)
        if straggler:
            delays[0] += self.straggler_s
        probes = validate_config(self.settings).algorithm.n_probes
        return validate_config(
            {
                "eval_every": NEVER,
                "checkpoint_every_s": NEVER,
                **self.settings,
                "blocks": f"by_size:{self.n_blocks}",
                "mode": mode,
                "delays": {n: s for n, s in delays.items() if s},
                "own_worker": (0,) if straggler and n_workers > 1 else (),
                "budget": {"loss_values": versions * probes},
                "cluster": {
                    "kind": "local",
                    "workers": n_workers,
                    "dashboard": False,
                },
            }
        )

    def spec(self, versions: int = 100) -> RunSpec:
        """What a worker needs to compute for this case."""
        data = open_store(self.store)
        config = resolve(self.config("sync", False, 1, versions), data)
        name = f"scaling-{uuid.uuid4().hex[:8]}"
        path = str(self.store.resolve())
        return RunSpec(name, config, path, data.content_sha256, versions)

    def measured(
        self, mode: str, straggler: bool, n_workers: int, versions: int, results: Path
    ) -> float:
        """Seconds a version of a real run on a local cluster, after the first."""
        config = self.config(mode, straggler, n_workers, versions)
        folder = results / uuid.uuid4().hex[:8]
        ds = train(config, results=folder, store=self.store)
        return seconds_a_version(ds["score_end_s"].values)


class Timing:
    """Times of a case on the virtual clock, without its mathematics: losses are 1."""

    def __init__(self, case: Case, digits: Path) -> None:
        settings = {
            "dataset": str(digits),
            "model": {"name": "mlp", "hidden": [8]},
            "n_shards": case.settings["n_shards"],
        }
        self.case = replace(case, store=digits, settings=settings)
        self.context = copy.copy(context_of(self.case.spec()))
        self.context.score = ones  # type: ignore[method-assign]

    def projected(
        self, mode: str, straggler: bool, n_workers: int, costs: Costs, versions: int
    ) -> float:
        """Seconds a version, after the first."""
        config = self.case.config(mode, straggler, n_workers, versions)
        training = on_virtual_clock(
            self.context, config, n_workers, costs, lambda *_: Unseen()
        )
        return seconds_a_version([end for _, _, end in training.journal.scores])


def seconds_a_version(published: Sequence[float]) -> float:
    """Mean time from one publication to the next."""
    return float(published[-1] - published[0]) / (len(published) - 1)


def ones(
    messages: Mapping[int, Any], steps: Sequence[int], shards: Sequence[int], _: int
) -> list[Scored]:
    """A loss of 1 in every shard, in the place of ``Context.score``."""
    return [Scored(np.ones(1)) for _ in shards]


class Unseen:
    """An evaluation that looks at nothing."""

    def ready(self) -> bool:
        """Always."""
        return True

    def result(self) -> tuple[Sums, float]:
        """A loss of 1."""
        return {split: np.ones((1, 3)) for split in SPLITS}, 0.0


def on_virtual_clock(
    context: Context,
    config: RunConfig,
    n_workers: int,
    costs: Costs,
    evaluate: Evaluator,
) -> FreeTraining:
    """Train on the virtual clock with ``config``'s mode, delays, placement and budget.

    A synchronous run goes through the coordinator as well, with bound 0.
    """
    changed = {
        name: getattr(config, name)
        for name in ("mode", "delays", "own_worker", "budget", "cluster", "eval_every")
    }
    own = copy.copy(context)
    own.config = context.config.model_copy(update=changed)
    own.spec = replace(context.spec, config=own.config)
    training = FreeTraining(own.spec, own, None, None, None)
    training.prepare(VirtualExecutor(own, n_workers, costs))
    training.run(evaluate)
    return training
