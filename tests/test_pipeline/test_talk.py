"""Replicas on two workers hear what they would hear on one."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from blocks.algorithm import Message
from blocks.oracle import Counters
from blocks.team import Team
from pipeline.mailbox import Mailbox
from pipeline.talk import Talk


class FakeLink:
    """A link whose posts go through one mailbox a rank, all in this process."""

    def __init__(self, boxes: list[Mailbox], rank: int) -> None:
        self.boxes, self.rank = boxes, rank
        self.posted: list[tuple[int, str]] = []

    def post(self, ranks: Any, name: str, value: Any) -> None:
        """Put a post in the mailboxes of other ranks."""
        for rank in ranks:
            assert rank != self.rank
            self.posted.append((rank, name))
            self.boxes[rank].put("piece", name, value)

    def take(self, name: str) -> Any:
        """Take a post out of the own mailbox."""
        return self.boxes[self.rank].take("piece", name, 10.0)


@dataclasses.dataclass(frozen=True)
class Whispers:
    """Listens to whom ``heard`` says."""

    heard: Any
    tells: bool = False
    kind: str = "whispers"

    def senders(self, node: int, team: Team, step: int, scalars: Any) -> Any:
        """Look it up."""
        return self.heard(node, step, scalars)


@dataclasses.dataclass(frozen=True)
class FakeContext:
    """What a talk needs of a context."""

    algorithm: Any
    team: Team
    device: Any = "cpu"


def message(node: int, k: int, *, tells: bool = False) -> Message:
    """A message whose payload says whose it is and of which step; node n: n+2 reals."""
    values = torch.full((node + 2,), float(10 * k + node))
    index = torch.tensor([node, k], dtype=torch.int32)
    told = (node / 7, float(k)) if tells else ()
    return Message(torch.zeros(1), payload=(values, index), scalars=told)


def states_of(nodes: Any, k: int, *, tells: bool = False) -> dict[int, Any]:
    """States and messages of some nodes at step k."""
    return {node: (None, message(node, k, tells=tells)) for node in nodes}


def talk_apart(
    algorithm: Any, team: Team, owners: dict[int, int], n_rounds: int
) -> tuple[list[dict[int, Any]], int, list[FakeLink]]:
    """Rounds of one talk a rank, side by side; what all nodes heard, and bytes."""
    context = FakeContext(algorithm, team)
    ranks = sorted(set(owners.values()))
    boxes = [Mailbox() for _ in ranks]
    links = [FakeLink(boxes, rank) for rank in ranks]
    counters = [Counters() for _ in ranks]

    def side(rank: int) -> list[dict[int, Any]]:
        talk = Talk(context, owners, rank, links[rank], counters[rank], 0.0)
        tells = algorithm.tells
        return [
            talk.round(k, states_of(talk.own, k, tells=tells)) for k in range(n_rounds)
        ]

    with ThreadPoolExecutor(len(ranks)) as pool:
        sides = list(pool.map(side, ranks))
    heard = [
        {node: said for one in sides for node, said in one[k].items()}
        for k in range(n_rounds)
    ]
    return heard, sum(c.bytes_moved for c in counters), links


def talk_together(
    algorithm: Any, team: Team, n_rounds: int
) -> tuple[list[dict[int, Any]], int]:
    """The same rounds of one talk that owns all nodes."""
    counters = Counters()
    owners = dict.fromkeys(range(team.n_nodes), 0)
    talk = Talk(FakeContext(algorithm, team), owners, 0, None, counters, 0.0)
    nodes, tells = range(team.n_nodes), algorithm.tells
    heard = [talk.round(k, states_of(nodes, k, tells=tells)) for k in range(n_rounds)]
    return heard, counters.bytes_moved


def assert_same(one: dict[int, Any], two: dict[int, Any]) -> None:
    """Compare what all nodes heard in a round."""
    assert sorted(one) == sorted(two)
    for node in one:
        (inbox, scalars), (expected, told) = one[node], two[node]
        assert scalars == told
        assert list(inbox) == list(expected)  # in node order
        for j in inbox:
            for a, b in zip(inbox[j], expected[j], strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)


def ring(node: int, step: int, scalars: Any) -> tuple[int, ...]:
    """The next node of three."""
    return ((node + 1) % 3,)


def now_and_then(node: int, step: int, scalars: Any) -> tuple[int, ...]:
    """All others, at odd steps."""
    return tuple(j for j in range(3) if j != node) if step % 2 else ()


def loudest(node: int, step: int, scalars: Any) -> tuple[int, ...]:
    """The node that tells the largest number, as all know."""
    best = max(range(3), key=lambda j: scalars[j][0])
    return () if node == best else (best,)


CASES = {
    "ring": Whispers(ring),
    "now-and-then": Whispers(now_and_then),
    "told-now-and-then": Whispers(now_and_then, tells=True),
    "loudest": Whispers(loudest, tells=True),
}
OWNERS = [{0: 0, 1: 1, 2: 1}, {0: 0, 1: 0, 2: 1}, {0: 0, 1: 1, 2: 2}]


@pytest.mark.parametrize("owners", OWNERS, ids=["0|12", "01|2", "0|1|2"])
@pytest.mark.parametrize("name", list(CASES))
def test_round__nodes_apart_hear_what_nodes_together_hear(name, owners) -> None:
    team = Team.of(3, 5)
    heard, n_bytes, _ = talk_apart(CASES[name], team, owners, 4)
    expected, expected_bytes = talk_together(CASES[name], team, 4)
    for one, two in zip(heard, expected, strict=True):
        assert_same(one, two)
    assert n_bytes == expected_bytes > 0


def test_round__counts_what_each_node_receives() -> None:
    team = Team.of(3, 5)
    _, moved = talk_together(CASES["ring"], team, 2)
    one_round = sum(4 * (node + 2) + 8 for node in range(3))  # each is heard once
    assert moved == 2 * one_round
    _, moved = talk_together(CASES["now-and-then"], team, 4)
    assert moved == 2 * 2 * one_round  # two rounds, two listeners
    _, moved = talk_together(CASES["loudest"], team, 1)
    two_numbers = 2 * 8
    assert moved == 3 * 2 * two_numbers + 2 * (4 * 4 + 8)


def test_round__nobody_who_is_not_listened_to_is_waited_for() -> None:
    _, _, links = talk_apart(CASES["now-and-then"], Team.of(3, 5), OWNERS[0], 4)
    for link in links:
        assert [name.split("-")[1] for _, name in link.posted] == ["1", "3"]
    lonely = Whispers(lambda node, step, scalars: ())
    heard, moved, links = talk_apart(lonely, Team.of(3, 5), OWNERS[0], 2)
    assert heard == [dict.fromkeys(range(3), ({}, ()))] * 2
    assert moved == 0
    assert [link.posted for link in links] == [[], []]


def test_round__a_worker_posts_only_payloads_that_the_other_listens_to() -> None:
    first = Whispers(lambda node, step, scalars: (0,) if node else ())
    _, _, links = talk_apart(first, Team.of(3, 5), OWNERS[0], 1)
    assert [link.posted for link in links] == [[(1, "payloads-0-0")], []]


@pytest.mark.parametrize("wrong", [0, 3, -1])
def test_round__a_sender_that_is_the_node_itself_or_nobody_is_refused(wrong) -> None:
    bad = Whispers(lambda node, step, scalars: (wrong,))
    with pytest.raises(ValueError, match="`senders` must name other nodes of the 3"):
        talk_together(bad, Team.of(3, 5), 1)


def test_round__scalars_that_are_not_declared_are_refused() -> None:
    talk = Talk(
        FakeContext(CASES["ring"], Team.of(3, 5)),
        dict.fromkeys(range(3), 0),
        *(0, None, Counters(), 0.0),
    )
    with pytest.raises(ValueError, match="`scalars` must come with `tells = True`"):
        talk.round(0, states_of(range(3), 0, tells=True))


@pytest.mark.parametrize(
    ("name", "machines", "waits"),
    [
        ("ring", 1, []),
        ("ring", 2, [0.25] * 4),
        ("now-and-then", 2, [0.25] * 2),
        ("told-now-and-then", 2, [0.25] * 6),
        ("told-now-and-then", 1, []),
    ],
)
def test_round__latency_is_waited_only_for_what_comes_from_another_machine(
    name, machines, waits, monkeypatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("pipeline.talk.time.sleep", slept.append)
    algorithm = CASES[name]
    context = FakeContext(algorithm, Team.of(3, 5, machines=machines))
    owners = dict.fromkeys(range(3), 0)
    talk = Talk(context, owners, 0, None, Counters(), 0.25)
    for k in range(4):
        talk.round(k, states_of(range(3), k, tells=algorithm.tells))
    assert slept == waits


def test_round__latency_is_not_waited_by_a_worker_whose_nodes_hear_their_own_machine(
    monkeypatch,
) -> None:
    slept: list[int] = []
    monkeypatch.setattr(
        "pipeline.talk.time.sleep", lambda s: slept.append(threading.get_ident())
    )
    pairs = Whispers(lambda node, step, scalars: (node ^ 1,))  # 0–1 and 2–3
    heard, _, _ = talk_apart(pairs, Team.of(4, 5), {0: 0, 1: 0, 2: 1, 3: 1}, 3)
    assert list(heard[2][3][0]) == [2, 3]
    context = FakeContext(pairs, Team.of(4, 5, machines=2))
    talk = Talk(context, dict.fromkeys(range(4), 0), 0, None, Counters(), 9.0)
    talk.round(0, states_of(range(4), 0))
    assert not slept


def test_round__real_replicas_apart_take_the_steps_of_replicas_together(
    tiny, context_for
) -> None:
    """A worker a node, with the mathematics of a run: the same bits."""
    config = tiny(algorithm={"kind": "pso-ps", "exchange_every": 2}, nodes=3)
    context = context_for(config)
    boxes = [Mailbox() for _ in range(3)]

    def side(rank: int, owners: dict[int, int], link: Any) -> tuple[Any, int]:
        counters = Counters()
        talk = Talk(context, owners, rank, link, counters, 0.0)
        states = {node: context.init_node(node) for node in talk.own}
        for k in range(6):
            heard = talk.round(k, states)
            states = {
                node: context.update(node, k, states[node][0], None, *heard[node])[:2]
                for node in talk.own
            }
        return states, counters.bytes_moved

    together, moved = side(0, dict.fromkeys(range(3), 0), None)
    owners = {node: node for node in range(3)}
    with ThreadPoolExecutor(3) as pool:
        apart = list(pool.map(lambda r: side(r, owners, FakeLink(boxes, r)), range(3)))
    assert sum(n for _, n in apart) == moved
    for node in range(3):
        ours, theirs = apart[node][0][node][1], together[node][1]
        np.testing.assert_array_equal(ours.solution, theirs.solution)
        assert ours.scalars == theirs.scalars
