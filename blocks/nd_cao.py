"""ND-CAO (Michailidis, Michailidis, Gkelios, Karatzinis, Kosmatopoulos 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import (
    Combine,
    Information,
    LossRecord,
    Message,
    Node,
    Observation,
    Oracle,
)
from blocks.antithetic import antithetic_gradient
from blocks.descent import OptimiserName, start_memory
from blocks.estimators import Surrogate, fit_kernel, fit_linear
from blocks.low_rank import NO_MATRICES, Directions, draw_directions
from blocks.monomials import Monomials, draw_monomials, fit_monomials
from blocks.nd_cao_checks import MIN_PAIRS, check_settings
from blocks.nd_cao_state import NDCAOState, Sent, descended, find_scored
from blocks.probes import ProbeKind, probe_points
from blocks.schedules import Schedule, step_size_at
from blocks.screening import Draw, Winner, unguided
from blocks.smoothing import image_starts, smooth
from blocks.window import Window


@dataclass(frozen=True, slots=True)
class NDCAO:
    """Gradient-free training of blocks that are told the global loss and nothing else.

    Step k of a block with centre c: append (own parameters that were scored, J) to the
    window of the last T pairs; fit Ĵ on it; of M candidates c + α_k ζ, one of them c
    itself, take the one of smallest Ĵ. The winner's part that the fit sees moves the
    centre; the rest, scaled by ρ, is only explored: it is in the point that is scored
    next, not in the answer. With fewer than 3 pairs, a window without information or a
    loss that is not finite the centre stays and the exploration is redrawn.

    Parameters
    ----------
    estimator : "linear" (one slope), "monomials" (the family's own form: random
        monomials of orders 1 to 3), "kernel" (all monomials up to ``degree``) or
        "antithetic" (no window and no candidates: the K losses' own slope, see below).
    window : int — T, scored pairs held; at least max(3, ``probes``).
    ridge : float or None — penalty λ > 0; None: 1e-4 (relative) for linear and kernel,
        10 (absolute, on rows scaled to ±10) for monomials.
    curvature : float — β ≥ 0 of ``fit_linear``: how much the slope is expected to
        change over the window; 0 is plain ridge least squares.
    candidates : int — M ≥ 2.
    exploration : float — ρ ≥ 0, standard deviation of a candidate outside what the fit
        sees, relative to inside; 1 is the plain method.
    exploration_kept : bool — the family's form: the whole winner becomes the centre.
    screening : "exact" (only the winner is built) or "explicit" (all M are drawn).
    candidate_draw : "gaussian" (unit variance) or "uniform" on [−1, 1]; the latter is
        exact for monomials only and needs ``screening="explicit"`` elsewhere.
    schedule, step_size, step_size_final, schedule_power : see
        ``schedules.step_size_at``; in units of the parameters.
    schedule_steps : int — length of the schedule; 0: the run's planned steps.
    probes : int — K, losses a version: 1 (the joined point itself) or even.
    probe_std : float or None — standard deviation of the probes; None: α_k ρ.
    probe_kind : "sign" or "gaussian".
    rank : int — outer products that a probe perturbs a weight array with
        (``blocks.low_rank``); 0: every entry on its own.
    optimiser, momentum : of "antithetic": "adam" (β1 = ``momentum``), "momentum" or
        "none" (the plain slope).
    n_monomials : int — L, monomials in the fit.
    monomials_kept : float — share of them used again, by |θ|; 0 ≤ share < 1.
    degree : int — order of the kernel, 1 to 3.
    images : (n, height, width) or None — the first n·height·width parameters of θ are
        n weight images (a dense first layer); candidates are smooth over them.
    smoothing : float — σ of the smooth candidates, pixels; 0 = none; without effect if
        ``images`` is None. Needs ``probes`` = 1.

    Notes
    -----
    In the manner of the paper: contract and update scheme are the paper's; the linear
    and kernel estimators, β, ρ, the separate centre, exact screening and K > 1 are
    ours. With "antithetic" the centre moves by −α_k·u(g), g the mean over pairs of (J⁺
    − J⁻)/(2σ) times the pair's direction and u the optimiser; a record with a loss that
    is not finite moves nothing. A record that is not newer than the last one folded
    adds no pair and changes nothing: the block sends the same message again. One that
    scored a point which this block no longer holds adds no pair either. After a change
    of the scoring subset old pairs stay, each subset with its own free intercept. Cost
    per step: K loss values; T³ + 4Td operations; out go d float32 numbers, 2d with K =
    1.

    References
    ----------
    Michailidis et al. (2023). Integrated Computer-Aided Engineering 31(1) 19–41.
    doi 10.3233/ICA-230718.
    """

    kind: Literal["nd-cao"] = "nd-cao"
    estimator: Literal["linear", "monomials", "kernel", "antithetic"] = "linear"
    window: int = 50
    ridge: float | None = None
    curvature: float = 0.1
    candidates: int = 1_000
    exploration: float = 0.3
    exploration_kept: bool = False
    screening: Literal["exact", "explicit"] = "exact"
    candidate_draw: Draw = "gaussian"
    schedule: Schedule = "linear"
    step_size: float = 0.01
    step_size_final: float = 0.0005
    schedule_power: float = 1.0
    schedule_steps: int = 0
    probes: int = 1
    probe_std: float | None = None
    probe_kind: ProbeKind = "sign"
    rank: int = 0
    optimiser: OptimiserName = "adam"
    momentum: float = 0.9
    n_monomials: int = 150
    monomials_kept: float = 0.0
    degree: int = 2
    images: tuple[int, int, int] | None = None
    smoothing: float = 1.5

    information: ClassVar[Information] = Information.SHARED_LOSS
    combine: ClassVar[Combine] = Combine.JOIN
    modes: ClassVar[frozenset[str]] = frozenset({"sync", "async"})
    paper: ClassVar[str] = "Michailidis et al. 2023 (doi 10.3233/ICA-230718)"
    blockwise: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "loss_samples": 20_000,
        "redraw_every": 0,
        "blocks": "by_unit:17",
    }
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def n_probes(self) -> int:
        """K."""
        return self.probes

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[NDCAOState, Message]:
        """Start around ``params`` (d,); the first point scored is ``params`` itself."""
        base = params.detach().to(torch.float32, copy=True)
        centre, starts = base, np.empty(0, dtype=np.int64)
        if self.images is not None:
            block = node.block
            indices = np.arange(len(base)) if block is None else block.indices
            starts = image_starts(indices, self.images)
            centre = torch.zeros_like(base)
        first = Sent(0, centre, self._probe_std(self.step_size))
        state = NDCAOState(
            index=node.index,
            seed=node.seed,
            centre=centre,
            sent=(first,),
            window=Window.empty(centre),
            version=-1,
            monomials=np.empty((0, 3), dtype=np.int64),
            base=None if self.images is None else base,
            starts=starts,
            matrices=NO_MATRICES.copy() if node.matrices is None else node.matrices,
            memory=start_memory(self.optimiser, centre)
            if self.estimator == "antithetic"
            else None,
        )
        return state, self._message(state)

    def step(
        self,
        state: NDCAOState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[NDCAOState, Message]:
        """Fold the record's losses and send the next point."""
        record = observation.record
        if record.version <= state.version:
            return state, self._message(state)
        state, scored = find_scored(state, record, self.probes)
        alpha = step_size_at(
            self.schedule,
            observation.step,
            self.schedule_steps or observation.n_steps,
            self.step_size,
            self.step_size_final,
            self.schedule_power,
        )
        step = observation.step + 1
        if self.estimator == "antithetic":
            state = self._descend(state, record, scored, alpha, step)
            return state, self._message(state)
        state = self._fold(state, record, scored)
        finite = all(math.isfinite(loss) for loss in record.losses)
        surrogate = None
        if finite and state.window.n_pairs >= MIN_PAIRS:
            surrogate = self._fit(state, rng)
        if surrogate is None:
            size, device = state.centre.shape[0], state.centre.device
            winner = unguided(size, self.exploration, device, rng)
        else:
            choose = (
                surrogate.screen if self.screening == "exact" else surrogate.explicit
            )
            winner = choose(
                self.candidates, alpha, self.exploration, rng, self.candidate_draw
            )
        state = self._move(state, winner, alpha, step)
        if isinstance(surrogate, Monomials):
            kept = surrogate.strongest(int(self.monomials_kept * self.n_monomials))
            state = replace(state, monomials=kept)
        return state, self._message(state)

    def _directions(self, state: NDCAOState, record: LossRecord) -> Directions:
        """The directions of the probes that a record holds the losses of."""
        return draw_directions(
            state.seed,
            state.index,
            record.steps[state.index],
            self.probes // 2,
            state.centre.shape[0],
            self.probe_kind,
            self.rank,
            state.matrices,
            state.centre.device,
        )

    def _fold(
        self, state: NDCAOState, record: LossRecord, scored: Sent | None
    ) -> NDCAOState:
        """Append a record's scored pairs to the window."""
        finite = [i for i, loss in enumerate(record.losses) if math.isfinite(loss)]
        if scored is None or not finite:
            return state
        points = scored.point[None]
        if self.probes > 1:
            dirs = self._directions(state, record).dense()
            points = probe_points(scored.point, scored.probe_std, dirs)
        losses = [record.losses[i] for i in finite]
        points = points if len(finite) == self.probes else points[finite]
        window = state.window.append(points, losses, record.subset, self.window)
        return replace(state, window=window)

    def _descend(
        self,
        state: NDCAOState,
        record: LossRecord,
        scored: Sent | None,
        alpha: float,
        step: int,
    ) -> NDCAOState:
        """Move the centre against the slope that the K losses themselves show."""
        losses = np.asarray(record.losses)
        if scored is not None and np.isfinite(losses).all():
            dirs = self._directions(state, record)
            slope = antithetic_gradient(losses, scored.probe_std, dirs)
            state = descended(state, slope, alpha, self.momentum)
        sent = Sent(step, state.centre, self._probe_std(alpha))
        return replace(state, sent=(*state.sent, sent))

    def _fit(self, state: NDCAOState, rng: np.random.Generator) -> Surrogate | None:
        if self.estimator == "linear":
            return fit_linear(state.window, state.centre, self._ridge, self.curvature)
        if self.estimator == "kernel":
            return fit_kernel(state.window, state.centre, self._ridge, self.degree)
        size = state.centre.shape[0]
        indices = draw_monomials(rng, size, self.n_monomials, state.monomials)
        return fit_monomials(state.window, state.centre, self._ridge, indices)

    def _move(
        self, state: NDCAOState, winner: Winner, alpha: float, step: int
    ) -> NDCAOState:
        """Move the centre by the winner and choose the point scored next."""
        if self.exploration_kept:
            centre = state.centre + alpha * winner.candidate
            point = centre
        else:
            centre = state.centre + alpha * winner.seen
            point = centre if self.probes > 1 else centre + alpha * winner.unseen
        sent = Sent(step, point, self._probe_std(alpha))
        return replace(state, centre=centre, sent=(*state.sent, sent))

    def _message(self, state: NDCAOState) -> Message:
        newest = state.sent[-1]
        centred = self.exploration_kept or self.probes > 1
        answer = None if centred else self._params(state, state.centre)
        return Message(self._params(state, newest.point), answer, newest.probe_std)

    def _params(self, state: NDCAOState, coordinates: Tensor) -> Tensor:
        """(d,) parameters at the block's own coordinates."""
        if self.images is None or state.base is None:
            return coordinates
        shape = self.images[1:]
        return state.base + smooth(coordinates, state.starts, shape, self.smoothing)

    def _probe_std(self, alpha: float) -> float:
        if self.probes == 1:
            return 0.0
        return alpha * self.exploration if self.probe_std is None else self.probe_std

    @property
    def _ridge(self) -> float:
        if self.ridge is not None:
            return self.ridge
        return 10.0 if self.estimator == "monomials" else 1e-4
