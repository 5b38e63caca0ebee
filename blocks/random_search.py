"""Random search around the best point so far: the least that a loss can be used for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import Combine, Information, Message, Node, Observation, Oracle
from blocks.optimisers import decayed


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A point that was handed over at a step, and may be scored."""

    step: int
    point: Tensor  # (d,)


@dataclass(frozen=True, slots=True, eq=False)
class RandomSearchState:
    """The best point of one block, and those whose score may be outstanding."""

    node: int
    best: Tensor  # (d,)
    best_loss: float  # infinite while unknown
    subset: int  # the draw of the scoring subset that ``best_loss`` belongs to
    sent: tuple[Candidate, ...]
    version: int = -1  # newest record folded


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Try a Gaussian neighbour of the best point, keep it if the loss fell.

    x = best + σ_k ζ in all blocks at once, ζ ~ N(0, I): best ← x where J(x) is
    below the smallest loss so far. The floor under every gradient-free method.

    Parameters
    ----------
    noise_std : float — σ > 0 at the first step, decayed by a cosine to
        ``final_fraction · σ``.
    final_fraction : float — share of σ left at the last step.

    Notes
    -----
    Random local search in the manner of Rastrigin (1963), with Gaussian steps of a
    planned length. The first score is that of the initial parameters. A loss is
    credited to the own point that was scored; synchronous blocks therefore keep or drop
    a joint candidate together, asynchronous ones each by the losses they saw. When the
    scoring subset is drawn anew, old losses mean nothing: the best is handed over
    again, and the next finite loss becomes the one to beat. Cost per step: 1 loss value
    on ``loss_samples`` samples.

    References
    ----------
    Rastrigin (1963). The Convergence of the Random Search Method in the Extremal
    Control of a Many Parameter System. Automation and Remote Control 24.
    """

    kind: Literal["random-search"] = "random-search"
    noise_std: float = 0.005
    final_fraction: float = 0.1

    information: ClassVar[Information] = Information.SHARED_LOSS
    combine: ClassVar[Combine] = Combine.JOIN
    modes: ClassVar[frozenset[str]] = frozenset({"sync", "async"})
    paper: ClassVar[str] = "Rastrigin 1963, in its manner"
    blockwise: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"loss_samples": 2000, "blocks": "all"}
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        rules = {
            "noise_std": ("positive and finite", 0 < self.noise_std < math.inf),
            "final_fraction": ("in [0, 1]", 0 <= self.final_fraction <= 1),
        }
        for name, (rule, kept) in rules.items():
            if not kept:
                raise ValueError(
                    f"`{name}` must be {rule}; got {getattr(self, name)}. "
                    "Correct the setting."
                )

    @property
    def n_probes(self) -> int:
        """One: the joined candidate itself."""
        return 1

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[RandomSearchState, Message]:
        """Hand over ``params`` (d,) to be scored first."""
        best = params.clone()
        state = RandomSearchState(node.index, best, math.inf, 0, (Candidate(0, best),))
        return state, Message(point=best, answer=best)

    def step(
        self,
        state: RandomSearchState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[RandomSearchState, Message]:
        """Keep the point that was scored if it is better, and try the next one."""
        record = observation.record
        if record.version > state.version:
            anew = record.subset != state.subset
            if anew:
                state = replace(state, best_loss=math.inf, subset=record.subset)
            else:
                state = judged(state, record.steps[state.node], record.loss)
            state = replace(state, version=record.version)
            point = state.best
            if not anew:
                point = self._neighbour(point, observation, rng)
            sent = Candidate(observation.step + 1, point)
            state = replace(state, sent=(*state.sent, sent))
        return state, Message(point=state.sent[-1].point, answer=state.best)

    def _neighbour(
        self, point: Tensor, observation: Observation, rng: np.random.Generator
    ) -> Tensor:
        """(d,) a Gaussian step of this moment's length away."""
        noise = torch.from_numpy(rng.standard_normal(point.numel(), dtype=np.float32))
        std = decayed(
            self.noise_std, self.final_fraction, observation.step, observation.n_steps
        )
        return point + std * noise.to(point)


def judged(state: RandomSearchState, scored: int, loss: float) -> RandomSearchState:
    """Return the state after a loss of the node's point of step ``scored``.

    Older points are forgotten: scores come in the order of the steps.
    """
    known = [i for i, sent in enumerate(state.sent) if sent.step <= scored]
    if not known:
        return state
    sent = state.sent[known[-1] :]
    if loss < state.best_loss:  # never for NaN
        return replace(state, best=sent[0].point, best_loss=loss, sent=sent)
    return replace(state, sent=sent)
