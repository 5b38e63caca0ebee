"""Dynamic batch size (Ye, Zhou, Shi, Sun, Lv 2020): slow nodes take fewer samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from blocks.algorithm import Message, Node, Observation, Oracle, Payload, Scalars
from blocks.replica import (
    Replica,
    ReplicaSGD,
    ahead,
    check,
    due,
    first_gradient,
    heard,
    mean_replica,
    others,
    team_of,
)
from blocks.team import Team


@dataclass(frozen=True, slots=True, eq=False)
class DBSState:
    """A replica, the gradient it has taken there, and who takes how much."""

    replica: Replica
    payload: Payload  # (P,) gradient of the own slice, (B,) buffers after its pass
    index: int
    sizes: tuple[int, ...]  # b_i by node, samples of a step
    # by node, that steps of these sizes take; summed since the sizes were chosen
    seconds: tuple[float, ...]
    epoch: int  # steps between two choices


@dataclass(frozen=True, slots=True)
class DBS(ReplicaSGD):
    """SGD on a minibatch that is cut by the nodes' speeds: ḡ = Σ_i (b_i/B) g_i.

    All nodes share one minibatch of B = ``batch_size`` · nodes samples; node i takes
    the gradient of a contiguous slice of b_i. After every epoch the shares p_i = b_i/B
    become p_i/t_i, scaled to sum 1 and rounded to whole samples, at least one a node;
    t_i is how long node i computed.

    Parameters
    ----------
    step_size, momentum, weight_decay, final_fraction : see ``ReplicaSGD``.
    batch_size : int — mean samples of one node's step.
    adapt_every : int — steps between two choices of shares; 0 = one epoch.
    speeds : tuple of float — declared samples/s of every node, in any unit:
        t_i = b_i/speed_i. Empty: all alike.
    measured : bool — t_i = the seconds that node i's steps took, by the run's clock. A
        node tells its seconds a sample, as sizes may change while a time is on its way.

    Notes
    -----
    Data are not moved: a node may take any sample, so the paper's second partition, of
    the data, is this one. With ``measured`` a run is not reproducible bit for bit, and
    a time arrives two steps late. Cost per step: B samples in all; P (and B) numbers
    from every other node, and one time if measured.

    References
    ----------
    Ye et al. (2020). DBS: Dynamic Batch Size For Distributed Deep Neural Network
    Training. arXiv 2007.11831.
    """

    kind: Literal["dbs"] = "dbs"
    adapt_every: int = 0
    speeds: tuple[float, ...] = ()
    measured: bool = False

    data: ClassVar[str] = "pooled"
    tells: ClassVar[bool] = True
    paper: ClassVar[str] = "Ye, Zhou, Shi, Sun, Lv 2020 (arXiv 2007.11831)"

    def __post_init__(self) -> None:
        ReplicaSGD.__post_init__(self)
        period, known = self.adapt_every, bool(self.speeds)
        check("adapt_every", period, "at least 0 (0: one epoch)", period >= 0)
        above = all(0 < speed < math.inf for speed in self.speeds)
        check("speeds", self.speeds, "positive and finite", above)
        one = not (known and self.measured)
        check("measured", self.measured, "false where `speeds` are given", one)

    def validate(self, team: Team) -> None:
        """Refuse ``speeds`` that are not one for every node of the team."""
        fits = len(self.speeds) in (0, team.n_nodes)
        check("speeds", self.speeds, f"one for each of {team.n_nodes} nodes", fits)

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """All others, at every step."""
        return others(node, team)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[DBSState, Message]:
        """Start at ``params`` (P,) with equal shares; take the first gradient."""
        replica, team = self.begin(node, params), team_of(node)
        self.validate(team)
        n = team.n_nodes
        total = min(self.batch_size * n, max(sum(team.n_samples), n))
        sizes = cut(total, (1.0 / n,) * n)
        payload = first_gradient(oracle, replica, slice_of(sizes, node.index))
        epoch = self.adapt_every or team.steps_per_epoch(self.batch_size)
        state = DBSState(replica, payload, node.index, sizes, (0.0,) * n, epoch)
        return self._answer(state, 0.0)

    def step(
        self,
        state: DBSState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[DBSState, Message]:
        """Fold everybody's gradients; choose sizes after an epoch; take the next."""
        total = sum(state.sizes)
        gradient, buffers = mean_replica(
            heard(observation, state.payload), [b / total for b in state.sizes]
        )
        replica = self.descend(state.replica, gradient, buffers, observation)
        sizes, seconds = state.sizes, self._add_times(state, observation)
        if due(observation.step + 1, state.epoch):
            sizes, seconds = resized(sizes, seconds), (0.0,) * len(sizes)
        part = slice_of(sizes, state.index)
        payload = ahead(oracle, replica, observation, part)
        new = DBSState(replica, payload, state.index, sizes, seconds, state.epoch)
        # The previous step, which was timed, took the gradient of the sizes till now.
        return self._answer(new, observation.seconds / state.sizes[state.index])

    def _add_times(
        self, state: DBSState, observation: Observation
    ) -> tuple[float, ...]:
        if self.measured:
            paces = [own[0] for own in observation.scalars]
            if not all(pace > 0 for pace in paces):  # not known: after an interruption
                return state.seconds
            taken = [b * pace for b, pace in zip(state.sizes, paces, strict=True)]
        else:
            speeds = self.speeds or (1.0,) * len(state.sizes)
            taken = [b / speed for b, speed in zip(state.sizes, speeds, strict=True)]
        return tuple(t + new for t, new in zip(state.seconds, taken, strict=True))

    def _answer(self, state: DBSState, pace: float) -> tuple[DBSState, Message]:
        """State and message; ``pace``: seconds a sample, 0 = not known."""
        replica = state.replica
        scalars = (pace,) if self.measured else ()
        return state, Message(
            replica.params,
            buffers=replica.buffers,
            payload=state.payload,
            scalars=scalars,
        )


def cut(total: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """``total`` ≥ n in n whole parts ≥ 1 near ``shares``, by the largest remainder.

    Parameters
    ----------
    shares : (n,) float, sum 1; ties go to the first.
    """
    wanted = [total * share for share in shares]
    parts = [max(math.floor(want), 1) for want in wanted]
    while sum(parts) != total:
        missing = sum(parts) < total
        gaps = [w - p for w, p in zip(wanted, parts, strict=True)]
        if missing:
            at = gaps.index(max(gaps))
        else:
            at = min((g, i) for i, g in enumerate(gaps) if parts[i] > 1)[1]
        parts[at] += 1 if missing else -1
    return tuple(parts)


def resized(sizes: tuple[int, ...], seconds: tuple[float, ...]) -> tuple[int, ...]:
    """Sizes by b_i/t_i; unchanged if a time is not positive and finite."""
    if not all(0 < t < math.inf for t in seconds):
        return sizes
    rates = [b / t for b, t in zip(sizes, seconds, strict=True)]
    return cut(sum(sizes), tuple(rate / sum(rates) for rate in rates))


def slice_of(sizes: tuple[int, ...], node: int) -> tuple[int, int]:
    """[start, stop) of a node's samples in the minibatch that all share."""
    start = sum(sizes[:node])
    return start, start + sizes[node]
