"""The algorithm interface: what a node is, what it may see, and what it answers.

An algorithm is a frozen dataclass of hyper-parameters with two pure functions, ``init``
and ``step``. The same object runs synchronously and asynchronously: when a step is
taken, and which loss record it folds, is the harness's business, never the algorithm's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from blocks.linearised import Linearised
    from blocks.partition import Block
    from blocks.team import Team

Payload = tuple[Tensor, ...]  # what a node sends to those that listen to it
Scalars = tuple[tuple[float, ...], ...]  # by node: what everybody is told

# Metadata of a state's field whose tensors stay in host memory, whatever the device:
# ``losses: Tensor = field(metadata=HOST)``. All others are put on the run's device.
HOST = {"host": True}

SERVER = -1  # the inbox's key of the model that a server holds


class Information(enum.Flag):
    """What a node may use; the oracle and the observation refuse everything else."""

    NOTHING = 0
    SHARED_LOSS = enum.auto()
    PER_SAMPLE_LOSS = enum.auto()
    OWN_ACTIVATIONS = enum.auto()
    OUTPUT_ERROR = enum.auto()
    LOSS_ORACLE = enum.auto()
    GRADIENT_ORACLE = enum.auto()
    JACOBIAN_ORACLE = enum.auto()
    NEIGHBOURS = enum.auto()


class Combine(enum.Enum):
    """How the nodes' answers become the parameter vector that is scored."""

    JOIN = "join"
    MEAN = "mean"
    BEST = "best"
    PER_NODE = "per-node"


class InformationError(PermissionError):
    """An algorithm asked for something that its ``information`` does not declare."""


@dataclass(frozen=True, slots=True)
class LossRecord:
    """One published global loss: host numbers only, all that the Variable ever holds.

    ``steps[i]`` is the step of node i whose point was scored, so that a node attributes
    the losses to the right one of its own past points.
    """

    run_id: str
    version: int  # publication count, from 0 (the initial parameters)
    losses: tuple[float, ...]  # (K,) one per joint probe; K = 1 without probes
    steps: tuple[int, ...]  # (n_nodes,)
    subset: int = 0  # which draw of the scoring subset the losses belong to

    @property
    def loss(self) -> float:
        """Mean of the K losses."""
        return float(np.mean(self.losses))


@dataclass(frozen=True, slots=True)
class Message:
    """What a node hands over after a step.

    ``point`` is what is scored (with probes: the centre they are drawn around);
    ``answer`` is what the node stands for when the network is evaluated or exported
    (``None``: the point). Probe directions never travel: they are rebuilt from (run
    seed, node, step). ``payload`` goes to the nodes that listen to this one at their
    next step (``Algorithm.senders``), ``scalars`` to all nodes before they choose whom
    to listen to.
    """

    point: Tensor  # (d,) float32
    answer: Tensor | None = None  # (d,) float32
    probe_std: float = 0.0  # σ of the probes around ``point``; 0 = no probes
    buffers: Tensor | None = None  # (B,) normalisation statistics, if trained
    payload: Payload = ()
    scalars: tuple[float, ...] = ()

    @property
    def solution(self) -> Tensor:
        """(d,) the parameters this node stands for."""
        return self.point if self.answer is None else self.answer

    @property
    def n_bytes(self) -> int:
        """Bytes of what a scorer is sent: point, answer and buffers."""
        return n_bytes(self.point, self.answer, self.buffers)

    @property
    def payload_bytes(self) -> int:
        """Bytes of what one listener is sent."""
        return n_bytes(*self.payload)


def n_bytes(*tensors: Tensor | None) -> int:
    """Bytes of some tensors, those that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True, slots=True)
class Node:
    """Who is asking: the node's place among its peers and the parameters it owns."""

    index: int
    n_nodes: int
    block: Block | None = None  # None: the node holds a replica of the whole network
    seed: int = 0  # the run's seed, for probes that the scorer must rebuild
    buffers: Tensor | None = None  # (B,) float buffers that a replica starts from
    team: Team | None = None  # of replica methods: who the others are
    # (m, 3) int64 of ``low_rank.find_matrices``, if the algorithm's probes need them
    matrices: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What a node is shown at one step; fields that are not declared raise when read.

    ``step`` is the node's own update count before this step: step k of a synchronous
    run folds version k and yields point k + 1.
    """

    step: int
    n_steps: int  # planned steps of this node (for schedules); 0 = open-ended
    allowed: Information
    _record: LossRecord | None = None
    _inbox: Mapping[int, Payload] = field(default_factory=dict)
    _scalars: Scalars = ()
    seconds: float = 0.0  # that the node's previous step took; 0 = not known

    @property
    def last(self) -> bool:
        """Whether no step is planned after this one."""
        return 0 < self.n_steps <= self.step + 1

    @property
    def record(self) -> LossRecord:
        """The loss record folded by this step."""
        if not self.allowed & (Information.SHARED_LOSS | Information.PER_SAMPLE_LOSS):
            raise InformationError(
                "`observation.record` must be declared as `Information.SHARED_LOSS`; "
                f"got {self.allowed}. Add the flag to the algorithm's `information`."
            )
        if self._record is None:
            raise ValueError(
                "`observation.record` must be set by the harness; got None."
            )
        return self._record

    @property
    def inbox(self) -> Mapping[int, Payload]:
        """Payloads of this node and of those it listens to at this step, by node.

        Empty where ``Algorithm.senders`` names nobody. Synchronous: everybody's after
        as many steps as this node's; asynchronous: the newest there are. A method with
        a server finds the model under ``SERVER``.
        """
        self._need_neighbours("inbox")
        return self._inbox

    @property
    def scalars(self) -> Scalars:
        """What every node has told everybody after its step, by node."""
        self._need_neighbours("scalars")
        return self._scalars

    def _need_neighbours(self, what: str) -> None:
        if not self.allowed & Information.NEIGHBOURS:
            raise InformationError(
                f"`observation.{what}` must be declared as `Information.NEIGHBOURS`; "
                f"got {self.allowed}. Add the flag to the algorithm's `information`."
            )


@runtime_checkable
class Oracle(Protocol):
    """What a node may ask of model and data; ``blocks.oracle`` enforces and counts."""

    @property
    def device(self) -> torch.device:
        """Where parameters, windows and data live."""

    def loss(self, params: Tensor) -> float:
        """Mean loss on the node's own minibatch (needs ``LOSS_ORACLE``)."""

    def common_loss(self, params: Tensor, buffers: Tensor | None = None) -> float:
        """Mean loss on the fixed subset that all nodes share (``LOSS_ORACLE``)."""

    def gradient(
        self,
        params: Tensor,
        buffers: Tensor | None,
        minibatch: int | None = None,
        part: tuple[int, int] | None = None,
    ) -> Gradient:
        """Gradient on the node's own minibatch (needs ``GRADIENT_ORACLE``).

        ``minibatch`` counts from 0 (None: this step's). With ``part``, the samples
        [start, stop) of the minibatch that all nodes share.
        """

    def linearised(
        self, params: Tensor, buffers: Tensor | None, minibatch: int | None = None
    ) -> Linearised:
        """Logits, gradient and Jacobian products on the node's own minibatch.

        ``minibatch`` as in ``gradient`` (needs ``JACOBIAN_ORACLE``).
        """

    def direct_feedback(
        self,
        params: Tensor,
        buffers: Tensor | None,
        feedback: Callable[[int, int], Tensor],
        minibatch: int | None = None,
    ) -> Gradient:
        """What each layer makes of the output's error on the node's own minibatch.

        ``feedback``: (n_classes, width of a layer's output) → the fixed matrix that
        brings the error there (needs ``OUTPUT_ERROR`` and ``OWN_ACTIVATIONS``).
        """

    def activity_estimate(self) -> Tensor:
        """(d,) the gradient that the node's layers estimate from their own noise.

        Mean over the record's samples (``OWN_ACTIVATIONS`` and ``PER_SAMPLE_LOSS``).
        """


@dataclass(frozen=True, slots=True)
class Gradient:
    """Answer of a gradient oracle."""

    loss: float
    gradient: Tensor  # (P,)
    buffers: Tensor | None  # (B,) float buffers after the training-mode pass


S = TypeVar("S")


class Algorithm(Protocol[S]):
    """The contract every entry of ``blocks.ALGORITHMS`` fulfils.

    Class attributes: ``kind`` (registry name; also a ``Literal`` field of the
    dataclass), ``information``, ``combine``, ``modes`` (subset of ``{"sync",
    "async"}``), ``paper`` (one line), ``blockwise`` (one node per block, else one node
    per replica), ``scored`` (whether steps fold a published loss), ``defaults``
    (settings of the harness that suit it, such as ``loss_samples`` or ``nodes``),
    ``__pydantic_config__ = {"extra": "forbid"}``. Replica methods may say more, see
    ``blocks.team``.

    ``init`` and ``step`` are pure: no I/O, no clock, no global generator; inputs are
    not modified; same inputs give the same outputs bit for bit. States are frozen
    dataclasses whose fields are tensors, numpy arrays, numbers, strings, None, tuples
    of these, or other frozen dataclasses, so that a checkpoint needs arrays and JSON
    only. Restored tensors are on the run's device, but those of fields marked ``HOST``.
    """

    kind: str
    information: ClassVar[Information]
    combine: ClassVar[Combine]
    modes: ClassVar[frozenset[str]]
    paper: ClassVar[str]
    blockwise: ClassVar[bool]
    scored: ClassVar[bool]
    defaults: ClassVar[Mapping[str, Any]]

    @property
    def n_probes(self) -> int:
        """K, joint probes scored per version (1 = the joined point itself)."""

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[S, Message]:
        """State and first message (step 0) of a node that starts from ``params``."""

    def step(
        self,
        state: S,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[S, Message]:
        """New state and message after folding what ``observation`` shows."""


def step_rng(seed: int, node: int, step: int, purpose: int = 0) -> np.random.Generator:
    """Return the counter-based generator of one (run seed, node, step).

    A retried step draws the same numbers again.

    Parameters
    ----------
    seed : int — run seed, 0 ≤ seed < 2**63.
    node, step : int — node index and its own step; step −1 is ``init``.
    purpose : int — separates independent streams of one step (0 = the step itself,
        1 = its probes).
    """
    key = np.array([seed, (purpose << 32) | node], dtype=np.uint64)
    counter = np.array([0, 0, 0, step + 1], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
