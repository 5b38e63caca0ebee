"""One asynchronous step of a group of blocks, wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.algorithm import LossRecord, Message, n_bytes
from blocks.oracle import Counters
from pipeline.context import Context
from pipeline.executor import Points, ScoreTask, UpdateDone, UpdateTask
from pipeline.pack import pack, tensor, unpack
from pipeline.rounds import NodeState
from pipeline.scoring import Credits, Scored, fold_credits, fold_losses


@dataclass(slots=True)
class Resident:
    """A group's states as one worker holds them: a cache, never the only copy."""

    step: int  # updates taken
    seen: int  # newest version folded
    states: dict[int, NodeState]


Clock = Callable[[], float]
Read = Callable[[], tuple[LossRecord, Credits]]  # what an update folds


def take_step(
    context: Context,
    resident: Resident | None,
    task: UpdateTask,
    read: Read,
    clock: Clock = time.time,
) -> tuple[Resident | None, UpdateDone]:
    """Read the board and update every block of the group once.

    Returns the states to keep and the answer: "missed" when the states are not here and
    the task brought no base, "idle" when the board holds nothing newer than what was
    folded.
    """
    if task.base is not None:
        resident = rebuild(context, task)
    elif task.step == 0 and (resident is None or resident.step != 0):
        resident = Resident(0, -1, {n: context.init_node(n) for n in task.nodes})
    if resident is None or resident.step != task.step:
        return resident, UpdateDone(task, "missed")
    record, credits = read()
    if record.version <= resident.seen:
        return resident, UpdateDone(task, "idle")
    states, times, counters = dict(resident.states), [], Counters()
    for node in task.nodes:
        start = clock()
        delay = context.config.delays.get(node, 0.0)
        if delay and clock is time.time:
            time.sleep(delay)  # a straggler on request, not a way to wait for anything
        state, message, used = context.update(
            node, task.step, states[node][0], record, credit=credits.get(node)
        )
        states[node] = (state, message)
        counters.add(used)
        counters.bytes_moved += message.n_bytes + n_bytes(credits.get(node))
        times.append((node, start, clock()))
    packed = {n: pack(s) for n, s in states.items()} if task.want_states else None
    done = UpdateDone(
        task,
        "done",
        resident.seen,
        record,
        points_of(states),
        tuple(times),
        counters,
        packed,
    )
    return Resident(task.step + 1, record.version, states), done


def rebuild(context: Context, task: UpdateTask) -> Resident:
    """States of a group from a snapshot and the records that were folded since."""
    base = task.base
    assert base is not None
    if base.packed is None:
        states = {n: context.init_node(n) for n in task.nodes}
    else:
        packed = base.packed
        states = {n: unpack(*packed[n], device=context.device) for n in task.nodes}
    step, seen = base.step, base.seen
    for record in base.records:
        for node in task.nodes:
            state, message, _ = context.update(node, step, states[node][0], record)
            states[node] = (state, message)
        step, seen = step + 1, record.version
    return Resident(step, seen, states)


def points_of(states: dict[int, NodeState]) -> Points:
    """What the scorer needs of each node's newest message, as host arrays."""
    return {node: point_of(message) for node, (_, message) in states.items()}


def point_of(message: Message) -> tuple[np.ndarray, np.ndarray | None, float]:
    """(point, answer, probe_std) of one message, copied to the host."""
    answer = None if message.answer is None else message.answer.cpu().numpy()
    return message.point.cpu().numpy(), answer, message.probe_std


def message_of(
    context: Context, point: tuple[np.ndarray, np.ndarray | None, float]
) -> Message:
    """The message whose arrays ``point_of`` took out."""
    at, answer, std = point
    device = context.device
    return Message(
        tensor(at, device), None if answer is None else tensor(answer, device), std
    )


def score_points(context: Context, task: ScoreTask, shards: list[int]) -> list[Scored]:
    """Score the joined points of a task on some shards (``Context.score``)."""
    messages = {node: message_of(context, point) for node, point in task.points.items()}
    return context.score(messages, task.steps, shards, task.version)


def published(
    context: Context, task: ScoreTask, in_order: list[Scored]
) -> tuple[LossRecord, Credits]:
    """The record of a score from the parts of all shards, and the blocks' credit."""
    losses = fold_losses(context, [part.sums for part in in_order])
    run_id, nodes = context.spec.run_id, range(context.n_nodes)
    record = LossRecord(run_id, task.version, losses, task.steps, task.subset)
    if context.activity is None:
        return record, {}
    return record, fold_credits(context, [p.of(nodes, context) for p in in_order])
