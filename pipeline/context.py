"""What one process needs to compute a run: model, blocks, resident data, algorithm."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from distributed import get_worker
from torch import Tensor, nn

from blocks.activity import ActivityModel, check_blocks
from blocks.activity_noise import noise_of
from blocks.algorithm import (
    Combine,
    Information,
    LossRecord,
    Message,
    Node,
    Observation,
    Payload,
    Scalars,
    step_rng,
)
from blocks.dotted import is_dotted
from blocks.forward import FlatModel, calibrate_buffers
from blocks.joint_probes import matrices_of
from blocks.losses import per_sample_loss
from blocks.models import build_model
from blocks.oracle import Counters, GuardedOracle
from blocks.partition import Block, join, partition, split
from blocks.purity import fingerprint, user_loss
from blocks.team import Team
from blocks.usercode import UserCodeError
from pipeline.batches import ResidentData, Split
from pipeline.config import RunConfig
from pipeline.data_store import DataStore, open_store
from pipeline.device import prepare
from pipeline.memory import keep_freed
from pipeline.network_check import check_size
from pipeline.scoring import Scored, score_shards
from pipeline.standardise import Standardisation
from pipeline.user_code import UserCode, check_here


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All a worker needs to rebuild a run's context; small but for ``params``."""

    run_id: str
    config: RunConfig  # resolved: no setting is left to a default
    store: str
    content_sha256: str
    n_steps: int  # planned steps of every node, for schedules; 0 = open-ended
    params: np.ndarray | None = None  # (P,) initial parameters, if not the seed's own
    buffers: np.ndarray | None = None  # (B,) initial buffers, with ``params``
    code: UserCode | None = None  # that every process must have; None: any
    origin: str = ""  # digest of a user's network as the client built it


class Context:
    """One run inside one process. Pure: equal inputs, equal bits, in every process."""

    def __init__(
        self, spec: RunSpec, store: DataStore, standard: Standardisation | None = None
    ) -> None:
        config = spec.config
        self.spec = spec
        self.config = config
        self.algorithm = config.algorithm
        self.device = torch.device(config.device)
        prepare(config)
        self._images = store.image_shape, store.n_classes
        module = self.build()
        if spec.code is not None:
            check_here(spec.code, config, module)
        self.blocks: tuple[Block, ...] = (
            partition(config.blocks or "all", module, patterns=config.custom_blocks)
            if self.algorithm.blockwise
            else ()
        )
        own = config.model.name if is_dotted(config.model.name) else ""
        self.model = FlatModel(module, device=self.device, user=own)
        self.matrices = matrices_of(self.algorithm, self.blocks, self.model.layout)
        self.loss_function = per_sample_loss(config.loss)
        self.data = ResidentData(store, config, self.device, standard)
        self.team = None if self.algorithm.blockwise else self._make_team()
        self.given = self._given()
        self.origin = fingerprint(module, self.given) if own else {}
        self.initial = self._initial_params()
        self.buffers = self._initial_buffers()
        self.activity = self._make_activity()

    @property
    def n_nodes(self) -> int:
        """Participants: blocks, or replicas."""
        return self.team.n_nodes if self.team else len(self.blocks)

    @property
    def runs_user_code(self) -> bool:
        """Whether the network or the loss is the user's own."""
        return bool(self.model.user or user_loss(self.loss_function))

    @property
    def origin_sha256(self) -> str:
        """Digest of what a user's network starts with; "" of ours."""
        text = json.dumps(self.origin, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest() if self.origin else ""

    def build(self) -> nn.Module:
        """The run's network as its seed makes it."""
        image_shape, n_classes = self._images
        config = self.config
        return build_model(
            config.model.name,
            image_shape,
            n_classes,
            seed=config.seed,
            **config.model.arguments(),
        )

    def _given(self) -> frozenset[str]:
        """Names of the parameters and buffers that do not come from the seed."""
        layout, found = self.model.layout, set()
        if self.spec.params is not None:
            found |= set(layout.names)
        if self.spec.buffers is not None:
            found |= {segment.name for segment in layout.buffer_segments}
        return frozenset(found)

    def _make_team(self) -> Team:
        config = self.config
        n_nodes = config.nodes or 1
        own = self.data.walks(n_nodes).n_own
        machines = config.machines or 1
        team = Team.of(n_nodes, own, config.seed, machines)
        team = replace(team, layers=self.model.layout.layers)
        validate = getattr(self.algorithm, "validate", None)
        if validate is not None:
            validate(team)
        return team

    def _make_activity(self) -> ActivityModel | None:
        noise = noise_of(self.algorithm)
        if noise is None:
            return None
        check_blocks(self.model.layout, self.blocks)
        return ActivityModel(self.model, noise)

    def _initial_params(self) -> Tensor:
        if self.spec.params is None:
            return self.model.initial_params()
        check_size(self.spec.run_id, len(self.spec.params), self.model.n_params)
        params = torch.empty(self.model.n_params)
        params.numpy()[...] = self.spec.params
        return params.to(self.device)

    def _initial_buffers(self) -> Tensor | None:
        if self.model.n_buffers == 0:
            return None
        if self.spec.buffers is not None:
            return torch.tensor(self.spec.buffers, device=self.device)
        if not self.algorithm.scored:
            return self.model.initial_buffers()
        batches = [
            inputs
            for inputs, _ in self.data.batches("loss", range(self.config.n_shards))
        ]
        return calibrate_buffers(self.model, self.initial, batches)

    # -- nodes ---------------------------------------------------------------------

    def _oracle(
        self, node: int, step: int, credit: Tensor | None = None
    ) -> GuardedOracle:
        size = getattr(self.algorithm, "batch_size", 0)
        n_nodes, data = self.n_nodes, self.data
        pooled = None
        if getattr(self.algorithm, "data", "shard") == "pooled":

            def pooled(k: int, part: tuple[int, int]) -> tuple[Tensor, Tensor]:
                return data.pooled(n_nodes, k, size * n_nodes, part)

        return GuardedOracle(
            allowed=self.algorithm.information,
            model=self.model,
            loss_function=self.loss_function,
            minibatch=lambda k: data.minibatch(node, n_nodes, k, size),
            step=step,
            pooled=pooled,
            common=lambda: data.batches("loss", range(self.config.n_shards)),
            credit=None if credit is None else lambda: credit,
        )

    def start(self) -> tuple[dict[int, tuple[Any, Message]], Counters]:
        """States and first messages of all nodes (step 0), and what they cost."""
        counters, found = Counters(), {}
        for node in range(self.n_nodes):
            found[node] = self.init_node(node, counters)
        return found, counters

    def init_node(
        self, node: int, counters: Counters | None = None
    ) -> tuple[Any, Message]:
        """State and first message of one node (step 0)."""
        params = self.initial
        block, matrices = None, None
        if self.algorithm.blockwise:
            block, matrices = self.blocks[node], self.matrices[node]
            params = split(self.initial, self.blocks)[node]
        replica = None if self.algorithm.blockwise else self.buffers
        seed = self.config.seed
        who = Node(node, self.n_nodes, block, seed, replica, self.team, matrices)
        rng = step_rng(self.config.seed, node, -1)
        oracle = self._oracle(node, 0)
        state, message = self.algorithm.init(who, params, oracle, rng)
        if counters is not None:
            counters.add(oracle.counters)
        return state, message

    def update(
        self,
        node: int,
        step: int,
        state: Any,
        record: LossRecord | None,
        inbox: Mapping[int, Payload] | None = None,
        scalars: Scalars = (),
        seconds: float = 0.0,
        credit: Tensor | None = None,
    ) -> tuple[Any, Message, Counters]:
        """Take one node's step ``step`` (its number of updates so far)."""
        oracle = self._oracle(node, step, credit)
        observation = Observation(
            step=step,
            n_steps=self.spec.n_steps,
            allowed=self.algorithm.information,
            _record=record,
            _inbox=inbox or {},
            _scalars=scalars,
            seconds=seconds,
        )
        rng = step_rng(self.config.seed, node, step)
        state, message = self.algorithm.step(state, observation, oracle, rng)
        return state, message, oracle.counters

    @property
    def talks(self) -> bool:
        """Whether replicas listen to each other or to a server."""
        needs = self.algorithm.information & Information.NEIGHBOURS
        return self.team is not None and bool(needs)

    @property
    def served(self) -> bool:
        """Whether the model is held in one place."""
        return bool(getattr(self.algorithm, "served", False))

    # -- scoring -------------------------------------------------------------------

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """(P,) the parameter vector that the nodes' parts stand for."""
        if self.algorithm.combine is Combine.JOIN:
            return join(parts, self.blocks, self.model.n_params)
        if self.algorithm.combine is not Combine.MEAN:
            raise ValueError(
                f"`combine` must be JOIN, MEAN or BEST; got {self.algorithm.combine} "
                f"of {self.algorithm.kind}. Use an algorithm that combines so."
            )
        total = torch.zeros_like(parts[0])
        for part in parts:
            total += part
        return total / len(parts)

    def solution(self, messages: Mapping[int, Message]) -> tuple[Tensor, Tensor | None]:
        """Parameters (P,) and buffers (B,) of the network the nodes stand for."""
        ordered = [messages[node] for node in range(self.n_nodes)]
        if self.algorithm.combine is Combine.BEST:
            best = min(ordered, key=_loss_of)
            return best.solution, best.buffers
        buffers = [m.buffers for m in ordered if m.buffers is not None]
        mean = torch.stack(buffers).mean(0) if buffers else self.buffers
        return self.join([m.solution for m in ordered]), mean

    def score(
        self,
        messages: Mapping[int, Message],
        steps: Sequence[int],
        shards: Sequence[int],
        version: int,
    ) -> list[Scored]:
        """Score the nodes' points on some shards (``scoring.score_shards``)."""
        subset = self.subset(version)
        return score_shards(self, messages, steps, shards, version, subset)

    def subset(self, version: int) -> int:
        """Which draw of the scoring subset a version is scored on."""
        every = self.config.redraw_every
        return version // every if every else 0

    def evaluate(
        self,
        params: Tensor,
        buffers: Tensor | None,
        split_name: Split,
        shards: Sequence[int],
        relabel: np.ndarray | None = None,
    ) -> np.ndarray:
        """(len(shards), 3) float64: loss sum, correct answers, samples by shard.

        ``relabel`` holds the network's class of each class of the data, where they
        have another order.
        """
        sums = np.zeros((len(shards), 3))
        order = None if relabel is None else torch.from_numpy(relabel).to(self.device)
        with torch.no_grad():
            for row, shard in enumerate(shards):
                for inputs, targets in self.data.batches(split_name, [shard]):
                    if order is not None:
                        targets = order[targets]
                    logits = self.model.forward(params, inputs, buffers)
                    losses = self.loss_function(logits, targets).double().sum()
                    correct = (logits.argmax(1) == targets).sum()
                    both = torch.stack([losses, correct.double()]).cpu().numpy()
                    sums[row] += [*both, len(targets)]
        return sums


def _loss_of(message: Message) -> float:
    loss = message.scalars[0]
    return loss if math.isfinite(loss) else math.inf


_CACHE: dict[str, Context] = {}
_LOCK = threading.Lock()
_KEPT = 4  # contexts a process keeps (several runs may share a worker)


def context_of(spec: RunSpec, *, anew: bool = False) -> Context:
    """Return the context of a run in this process, built on first use.

    Parameters
    ----------
    anew : bool — whether a user's code is built again: it may have changed since.

    Raises
    ------
    UserCodeError — if the user's network starts otherwise here than on the client.
    """
    keep_freed()
    key = f"{spec.run_id}:{spec.content_sha256}:{spec.store}"
    with _LOCK:
        found = _CACHE.pop(key, None)
        if found is not None and anew and found.runs_user_code:
            found = None
        if found is None or not _same_start(found.spec, spec):
            found = Context(spec, _told(spec))
        if spec.origin and spec.origin != found.origin_sha256:
            raise UserCodeError(
                "`model` must build the same network on every machine; got "
                f"{found.config.model.name!r}, which started otherwise on "
                f"{socket.gethostname()} than on the client. Let it depend on `seed` "
                "and options alone, or give the parameters with --init."
            )
        _CACHE[key] = found
        while len(_CACHE) > _KEPT:
            _CACHE.pop(next(iter(_CACHE)))
    prepare(spec.config)
    return found


def _told(spec: RunSpec) -> DataStore:
    """Open the data that the run was told; what is loaded of them later is checked.

    Raises
    ------
    FileNotFoundError, ValueError — if this process sees none, or others, there.
    """
    try:
        store = open_store(spec.store, verify=False)
    except FileNotFoundError as err:
        raise FileNotFoundError(
            f"`dataset` must be in every process of a run; got nothing at {spec.store} "
            f"in {_here()}. Copy the store there, or share its folder."
        ) from err
    if store.content_sha256 != spec.content_sha256:
        raise ValueError(
            f"`dataset` must be the same in every process of a run; got content hash "
            f"{store.content_sha256} at {spec.store} in {_here()}, not "
            f"{spec.content_sha256}. Put the run's own data there and train it again."
        )
    return store


def _here() -> str:
    host = socket.gethostname()
    try:
        return f"worker {get_worker().name} on {host}"
    except ValueError:
        return f"this process on {host}"


def drop_contexts() -> None:
    """Build contexts anew from now on: the code of a model has changed."""
    _CACHE.clear()


def _same_start(a: RunSpec, b: RunSpec) -> bool:
    if (a.config, a.code) != (b.config, b.code):
        return False
    return a.n_steps == b.n_steps and all(
        (x is None and y is None)
        or (x is not None and y is not None and np.array_equal(x, y))
        for x, y in ((a.params, b.params), (a.buffers, b.buffers))
    )
