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
from blocks.estimators import Surrogate, fit_kernel, fit_linear
from blocks.monomials import Monomials, draw_monomials, fit_monomials
from blocks.probes import ProbeKind, directions, probe_points
from blocks.schedules import Schedule, step_size_at
from blocks.screening import Draw, Winner, unguided
from blocks.smoothing import image_starts, smooth
from blocks.window import Window

_MIN_PAIRS = 3  # fewer scored pairs than this: a random move


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A point that this block sent out and whose loss may still arrive."""

    step: int  # first own step that sent it; it stands until the next entry's step
    point: Tensor  # (d,) float32
    probe_std: float  # 0 = the point itself is scored


@dataclass(frozen=True, slots=True, eq=False)
class NDCAOState:
    """What one block knows: its centre, its scored pairs, its points under way.

    Centre, points and window are the parameters themselves, or with smooth candidates
    coordinates z of the parameters base + Sz.
    """

    index: int
    seed: int
    centre: Tensor  # (d,) float32, c
    sent: tuple[Sent, ...]  # oldest first, never empty
    window: Window
    version: int  # newest version folded, −1 = none
    monomials: np.ndarray  # (kept, 3) int64, monomials to be used again
    base: Tensor | None  # (d,) float32, initial parameters if candidates are smooth
    starts: np.ndarray  # (g,) int64, positions of the smooth weight images


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
        monomials of orders 1 to 3) or "kernel" (all monomials up to ``degree``).
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
    ours. A record that is not newer than the last one folded adds no pair and changes
    nothing: the block sends the same message again. One that scored a point which this
    block no longer holds adds no pair either. After a change of the scoring subset old
    pairs stay, each subset with its own free intercept. Cost per step: K loss values;
    T³ + 4Td operations; out go d float32 numbers, 2d with K = 1.

    References
    ----------
    Michailidis et al. (2023). Integrated Computer-Aided Engineering 31(1) 19–41.
    doi 10.3233/ICA-230718.
    """

    kind: Literal["nd-cao"] = "nd-cao"
    estimator: Literal["linear", "monomials", "kernel"] = "linear"
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
        _check_settings(self)

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
        state = self._fold(state, record)
        alpha = step_size_at(
            self.schedule,
            observation.step,
            self.schedule_steps or observation.n_steps,
            self.step_size,
            self.step_size_final,
            self.schedule_power,
        )
        finite = all(math.isfinite(loss) for loss in record.losses)
        surrogate = None
        if finite and state.window.n_pairs >= _MIN_PAIRS:
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
        state = self._move(state, winner, alpha, observation.step + 1)
        if isinstance(surrogate, Monomials):
            kept = surrogate.strongest(int(self.monomials_kept * self.n_monomials))
            state = replace(state, monomials=kept)
        return state, self._message(state)

    def _fold(self, state: NDCAOState, record: LossRecord) -> NDCAOState:
        """Append a record's scored pairs; drop points not scored any more."""
        scored = record.steps[state.index]
        known = [i for i, sent in enumerate(state.sent) if sent.step <= scored]
        if not known:
            return replace(state, version=record.version)
        sent = state.sent[known[-1] :]
        if len(record.losses) != self.probes:
            raise ValueError(
                f"`record.losses` must hold `probes` = {self.probes} losses; got "
                f"{len(record.losses)} at version {record.version}. "
                "Score K probes a version, K the algorithm's `n_probes`."
            )
        points = sent[0].point[None]
        if self.probes > 1:
            size, device = points.shape[1], points.device
            dirs = directions(
                state.seed,
                state.index,
                scored,
                self.probes // 2,
                size,
                self.probe_kind,
                device,
            )
            points = probe_points(sent[0].point, sent[0].probe_std, dirs)
        window = state.window
        finite = [i for i, loss in enumerate(record.losses) if math.isfinite(loss)]
        if finite:
            losses = [record.losses[i] for i in finite]
            points = points if len(finite) == self.probes else points[finite]
            window = window.append(points, losses, record.subset, self.window)
        return replace(state, sent=sent, window=window, version=record.version)

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


def _check_settings(config: NDCAO) -> None:
    """Raise ValueError for the first setting that is out of its range."""
    positive = ("ridge", "step_size", "step_size_final", "schedule_power", "probe_std")
    for name in positive:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise _error(name, "be positive and finite", value, "Correct the setting.")
    least = {"candidates": 2, "n_monomials": 1, "schedule_steps": 0, "probes": 1}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            value = getattr(config, name)
            raise _error(name, f"be at least {bound}", value, "Raise it.")
    if config.probes > 1 and config.probes % 2:
        rule = "be 1, or even (antithetic pairs)"
        raise _error("probes", rule, config.probes, "Add one.")
    if config.window < max(_MIN_PAIRS, config.probes):
        rule = f"be at least max({_MIN_PAIRS}, `probes`)"
        raise _error("window", rule, config.window, "Hold at least one record.")
    for name, advice in (
        ("exploration", "Try 0.3."),
        ("curvature", "Try 0.1."),
        ("smoothing", "Try 1.5."),
    ):
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise _error(name, "be finite and not negative", value, advice)
    if not 0 <= config.monomials_kept < 1:
        rule = "lie in 0 ≤ share < 1"
        raise _error("monomials_kept", rule, config.monomials_kept, "Try 0.5.")
    if not 1 <= config.degree <= 3:
        raise _error("degree", "be 1, 2 or 3", config.degree, "Choose one of them.")
    if config.images is not None and min(config.images) < 1:
        rule = "hold three sizes of at least 1"
        raise _error("images", rule, config.images, "Write (n, height, width).")
    if config.images is not None and config.smoothing == 0:
        raise _error(
            "images", "be None with `smoothing` = 0", config.images, "Drop it."
        )
    if config.images is not None and config.probes > 1:
        raise _error("images", "be None with `probes` > 1", config.images, "Drop one.")
    exact = config.screening == "exact" and config.estimator != "monomials"
    if config.candidate_draw == "uniform" and exact:
        raise _error(
            "candidate_draw",
            'be "gaussian" with exact screening of this estimator',
            config.candidate_draw,
            'Set `screening="explicit"`, or use Gaussian candidates of equal variance.',
        )
    if config.exploration == 0 and config.probes > 1 and config.probe_std is None:
        advice = "Set `probe_std`, or an `exploration` above 0."
        raise _error("probe_std", "be given with `exploration` = 0", None, advice)


def _error(name: str, rule: str, value: object, advice: str) -> ValueError:
    return ValueError(f"`{name}` must {rule}; got {value!r}. {advice}")
