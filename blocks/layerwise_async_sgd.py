"""Layer-wise asynchronous SGD (Fokam et al. 2024): a gradient handed over in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import SERVER, Message, Node, Observation, Oracle
from blocks.async_sgd import ServedSGD, Server, unpacked

Layers = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class LayerwiseState:
    """The gradient that a node is handing over."""

    layers: Layers  # (start, stop) of each layer's slice of θ, in order
    n_gradients: int = 0
    gradient: Tensor | None = None  # of the ``n_waiting`` first layers, yet to be sent
    buffers: Tensor | None = None  # (B,) statistics after the gradient's pass
    n_waiting: int = 0


@dataclass(frozen=True, slots=True)
class LayerwiseAsyncSGD(ServedSGD):
    """Asynchronous SGD whose nodes hand over a gradient layer by layer, last one first.

    A node computes one gradient at the model it was given and hands over the last
    layer's part; its next steps hand over the parts before it, one a step, and only
    then it looks at the model again. Other nodes' parts are folded in between: the
    first layers' parts are the stalest. L layers: L steps are one gradient.

    Parameters
    ----------
    assignment, momentum : see ``AsyncSGD``; a job is one part.
    step_size, weight_decay, batch_size, final_fraction : see ``ReplicaSGD``;
        ``batch_size`` is that of a gradient, so of L steps.

    Notes
    -----
    In the manner of the paper, of which it has the layer-wise updates in backward order
    and not the separate threads for forward and backward passes: here all parts belong
    to one gradient at one model, and are computed before the first of them is sent.
    The layers are the team's. Buffers come with a gradient's last part. Cost per L
    steps: 1 gradient evaluation; a node sends 4 (P + B) + 8 L bytes in them.

    References
    ----------
    Fokam, Nazeer, König, Kappel & Subramoney (2024). Asynchronous Stochastic Gradient
    Descent with Decoupled Backpropagation and Layer-Wise Updates. arXiv 2410.05985.
    """

    kind: Literal["layerwise-async-sgd"] = "layerwise-async-sgd"

    by_layer: ClassVar[bool] = True  # one gradient takes as many steps as layers
    paper: ClassVar[str] = "Fokam et al. 2024 (arXiv 2410.05985)"
    defaults: ClassVar[Mapping[str, Any]] = {"nodes": 4}

    def init(
        self, node: Node, params: Tensor, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[LayerwiseState, Message]:
        """Have nothing to hand over yet; the model is the server's.

        Raises
        ------
        ValueError — if the team's layers do not cover θ one after the other.
        """
        layers = node.team.layers if node.team is not None else ()
        layers = layers or ((0, len(params)),)
        starts = [start for start, _ in layers] + [len(params)]
        if starts != [0] + [stop for _, stop in layers]:
            raise ValueError(
                f"`team.layers` must cover all {len(params)} parameters one after the "
                f"other; got {layers}. Take the slices from the model's layout."
            )
        message = Message(point=params.clone(), buffers=node.buffers)
        return LayerwiseState(layers), message

    def step(
        self,
        state: LayerwiseState,
        observation: Observation,
        oracle: Oracle,
        rng: np.random.Generator,
    ) -> tuple[LayerwiseState, Message]:
        """Hand over the next part; compute a new gradient if there is none."""
        params, buffers = unpacked(observation.inbox[SERVER])
        layers, done, gradient = state.layers, state.n_gradients, state.gradient
        n_waiting = state.n_waiting
        if gradient is None:
            answer = oracle.gradient(params, buffers, minibatch=done)
            gradient, buffers = answer.gradient, answer.buffers
            done, n_waiting = done + 1, len(layers)
        else:
            buffers = state.buffers
        start, stop = layers[n_waiting - 1]
        # Copies: a slice would travel with all of the gradient's memory.
        part = (gradient[start:stop].clone(), torch.tensor([start]))
        if n_waiting > 1:
            rest = gradient[:start].clone()
            new = LayerwiseState(layers, done, rest, buffers, n_waiting - 1)
            return new, Message(point=params, payload=part)
        payload = part if buffers is None else (*part, buffers)
        message = Message(point=params, buffers=buffers, payload=payload)
        return LayerwiseState(layers, done), message

    def serve(
        self, server: Server, node: int, message: Message, n_steps: int
    ) -> Server:
        """Step against the part of a gradient that has arrived."""
        gradient, start, *rest = message.payload
        buffers = rest[0] if rest else None
        return self.fold(server, gradient, int(start), buffers, n_steps)
