"""NEXT for neural networks (Scardapane & Di Lorenzo 2017): gradient tracking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from blocks import topology
from blocks.algorithm import (
    Combine,
    Gradient,
    Information,
    Message,
    Node,
    Observation,
    Oracle,
    Payload,
    Scalars,
)
from blocks.linearised import Linearised
from blocks.replica import check, mean, team_of
from blocks.surrogates import Surrogate, soft_threshold, solve
from blocks.team import Team
from blocks.topology import Graph

Linearisation = Literal["full", "partial"]


@dataclass(frozen=True, slots=True, eq=False)
class NEXTState:
    """One node between two exchanges; the payload holds z, y and the buffers."""

    node: int
    team: Team
    payload: Payload  # z (P,), y (P,) float64, buffers (B,) if there are any
    gradient: Tensor  # (P,) of the node's mean loss: what the tracker was last given
    step_size: float  # α_k


@dataclass(frozen=True, slots=True)
class NEXT:
    """Nodes with private data minimise Σ_i g_i(w) + r(w) over a graph of neighbours.

    g_i = (n_i/n)·(mean loss on node i's samples), so that Σ_i g_i is the mean loss over
    all; r(w) = λ₂‖w‖² + λ₁‖w‖₁, counted once. With y_i the tracker of the mean
    gradient, π_i = N y_i − ∇g_i what the others' gradients add up to, and c the mixing
    weights, each step is::

        w̃_i = argmin_w  ĝ_i(w; w_i) + π_i'(w − w_i) + τ/2 ‖w − w_i‖² + r(w)
        z_i  = w_i + α (w̃_i − w_i)
        w_i ← Σ_j c_ij z_j
        y_i ← Σ_j c_ij y_j + ∇g_i(new) − ∇g_i(old)
        α   ← α (1 − μ α)

    Parameters
    ----------
    linearisation : "full" (ĝ_i is linear: w̃_i in closed form, gradient tracking) or
        "partial" (ĝ_i keeps the run's own loss, convex in the logits, and linearises
        the network).
    step_size : float — α_0 in (0, 1].
    decay : float — μ ≥ 0 with μ·α_0 < 1.
    tau : float — τ > 0; keep α·L/τ < 1 for a loss of curvature L.
    l1, l2 : float — λ₁, λ₂ ≥ 0.
    graph : "ring", "complete", "erdos-renyi" or "matchings" (new pairs at every step);
        Metropolis weights.
    edge_probability : float — of "erdos-renyi", in (0, 1].
    graph_seed : int — of the random graphs.
    mixing_weights : rows of c, doubly stochastic; replace ``graph``. Empty: unused.
    batch_size : int — samples of a node's step; 0 = all that it has.
    cores : int — contiguous parts of θ whose problems a node solves side by side, the
        other parts staying where they are (Jacobi). No effect on "full".
    inner_steps, newton_steps : int — of the partial problem's solver.

    Notes
    -----
    Gradients are taken ahead, at the point that a step has just reached, on the next
    minibatch. The tracker adds the new gradient and takes away the very vector that it
    added last; it is float64, so that mean y = mean ∇g_i holds for the whole run.
    ``information`` covers both linearisations: "full" never asks for Jacobians. Cost
    per step: one gradient evaluation, and with "partial" up to
    cores·newton_steps·(2·inner_steps + 2) products with the Jacobian; a message of 12 P
    bytes to each neighbour.

    References
    ----------
    Scardapane & Di Lorenzo (2017). A framework for parallel and distributed training
    of neural networks. Neural Networks 91, arXiv 1610.07448. Di Lorenzo & Scutari
    (2016). NEXT: In-network nonconvex optimization. arXiv 1602.00591.
    """

    kind: Literal["next"] = "next"
    linearisation: Linearisation = "full"
    step_size: float = 0.5
    decay: float = 0.01
    tau: float = 2.0
    l1: float = 0.0
    l2: float = 0.0
    graph: Graph = "ring"
    edge_probability: float = 0.5
    graph_seed: int = 0
    mixing_weights: tuple[tuple[float, ...], ...] = ()
    batch_size: int = 32
    cores: int = 1
    inner_steps: int = 10
    newton_steps: int = 1

    information: ClassVar[Information] = (
        Information.GRADIENT_ORACLE
        | Information.JACOBIAN_ORACLE
        | Information.NEIGHBOURS
    )
    combine: ClassVar[Combine] = Combine.MEAN
    modes: ClassVar[frozenset[str]] = frozenset({"sync"})
    paper: ClassVar[str] = (
        "Scardapane & Di Lorenzo 2017 (arXiv 1610.07448); NEXT: Di Lorenzo & Scutari "
        "2016 (arXiv 1602.00591)"
    )
    blockwise: ClassVar[bool] = False
    scored: ClassVar[bool] = False
    data: ClassVar[str] = "shard"
    defaults: ClassVar[Mapping[str, Any]] = {"nodes": 4}
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        inf = float("inf")
        for name, kinds in (("linearisation", Linearisation), ("graph", Graph)):
            allowed = get_args(kinds)
            value = getattr(self, name)
            check(name, repr(value), f"one of {allowed}", value in allowed)
        rules = {
            "step_size": ("in (0, 1]", 0 < self.step_size <= 1),
            "decay": (
                "≥ 0 and below 1 / `step_size`",
                0 <= self.decay * self.step_size < 1,
            ),
            "tau": ("positive and finite", 0 < self.tau < inf),
            "l1": ("≥ 0 and finite", 0 <= self.l1 < inf),
            "l2": ("≥ 0 and finite", 0 <= self.l2 < inf),
            "edge_probability": ("in (0, 1]", 0 < self.edge_probability <= 1),
            "graph_seed": ("≥ 0 and below 2**63", 0 <= self.graph_seed < 2**63),
            "batch_size": ("≥ 1, or 0 for all samples", self.batch_size >= 0),
            "cores": ("≥ 1", self.cores >= 1),
            "inner_steps": ("≥ 1", self.inner_steps >= 1),
            "newton_steps": ("≥ 1", self.newton_steps >= 1),
        }
        for name, (rule, kept) in rules.items():
            check(name, getattr(self, name), rule, kept)

    @property
    def n_probes(self) -> int:
        """No probes."""
        return 1

    def validate(self, team: Team) -> None:
        """Check that the nodes can agree, before a run.

        Raises
        ------
        ValueError — if the graph (over a window of steps, if it changes) is not
            connected, or ``mixing_weights`` are not fit for it.
        """
        if self.mixing_weights:
            topology.check_weights(self.mixing_weights, team.n_nodes)
        elif team.n_nodes > 1:
            topology.check_connected(
                self.graph, team.n_nodes, self.graph_seed, self.edge_probability
            )

    def senders(
        self, node: int, team: Team, step: int, scalars: Scalars
    ) -> tuple[int, ...]:
        """The neighbours of ``node`` in the graph of this step."""
        row = self._weights(team, step)[node]
        return tuple(int(j) for j in np.flatnonzero(row) if j != node)

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[NEXTState, Message]:
        """Start at ``params`` (P,) with y = ∇g_i on minibatch 0."""
        params, me = params.clone(), (node.index, team_of(node))
        answer = self._ask(oracle, params, node.buffers, 0)
        tracker = _share(*me) * answer.gradient.double()
        payload = self._payload(*me, params, tracker, answer, self.step_size)
        state = NEXTState(*me, payload, answer.gradient, self.step_size)
        return state, Message(params, buffers=node.buffers, payload=payload)

    def step(
        self,
        state: NEXTState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[NEXTState, Message]:
        """Mix what the neighbours sent; then prepare the next exchange."""
        me = (state.node, state.team)
        row = self._weights(state.team, observation.step)[state.node]
        heard = observation.inbox or {state.node: state.payload}
        weights = [float(row[j]) for j in heard]
        parts = zip(*heard.values(), strict=True)
        mixed = tuple(mean(list(part), weights) for part in parts)
        params, tracker = mixed[:2]
        buffers = mixed[2] if len(mixed) > 2 else None
        alpha = state.step_size * (1 - self.decay * state.step_size)
        if observation.last:
            last = NEXTState(*me, mixed, state.gradient, alpha)
            return last, Message(params, buffers=buffers)
        answer = self._ask(oracle, params, buffers, observation.step + 1)
        # The difference is *added*; the old gradient is the very one added last.
        tracker += _share(*me) * answer.gradient.double()
        tracker -= _share(*me) * state.gradient.double()
        payload = self._payload(*me, params, tracker, answer, alpha)
        new = NEXTState(*me, payload, answer.gradient, alpha)
        return new, Message(params, buffers=answer.buffers, payload=payload)

    def _weights(self, team: Team, step: int) -> np.ndarray:
        return topology.mixing_weights(
            self.graph,
            team.n_nodes,
            step if self.graph == "matchings" else 0,
            self.graph_seed,
            self.edge_probability,
            self.mixing_weights,
        )

    def _ask(
        self, oracle: Oracle, params: Tensor, buffers: Tensor | None, minibatch: int
    ) -> Gradient | Linearised:
        if self.linearisation == "partial":
            return oracle.linearised(params, buffers, minibatch)
        return oracle.gradient(params, buffers, minibatch)

    def _payload(
        self,
        node: int,
        team: Team,
        params: Tensor,
        tracker: Tensor,
        answer: Gradient | Linearised,
        alpha: float,
    ) -> Payload:
        """Z = w + α (w̃ − w), y, and the buffers if there are any."""
        total = team.n_nodes * tracker  # N y = ∇g_i + π_i
        nu = self.tau + 2 * self.l2
        if isinstance(answer, Linearised):
            others = total - _share(node, team) * answer.gradient.double()
            linear = others.to(params.dtype) + 2 * self.l2 * params
            scale = _share(node, team) / len(answer.targets)
            moves = [
                solve(
                    Surrogate.of_part(answer, part, scale, linear, nu, self.l1, params),
                    self.newton_steps,
                    self.inner_steps,
                )
                for part in self._parts(len(params))
            ]
            reached = params + alpha * torch.cat(moves)
        else:
            slope = total.to(params.dtype) + 2 * self.l2 * params
            best = soft_threshold(params - slope / nu, self.l1 / nu)
            reached = params + alpha * (best - params)
        buffers = () if answer.buffers is None else (answer.buffers,)
        return (reached, tracker, *buffers)

    def _parts(self, n_params: int) -> list[tuple[int, int]]:
        """[start, stop) of the cores' parts of θ, as equal as can be."""
        n = min(self.cores, n_params)
        cuts = [n_params * core // n for core in range(n + 1)]
        return list(pairwise(cuts))


def _share(node: int, team: Team) -> float:
    """n_i / n."""
    return team.n_samples[node] / sum(team.n_samples)
