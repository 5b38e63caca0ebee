"""Which worker does what: everything once, whatever the number of workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.placement import group_slots, place, place_nodes


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_place__every_node_and_shard_is_placed_once(n_nodes, n_workers, data) -> None:
    alone = data.draw(
        st.sets(st.integers(0, n_nodes - 1), max_size=min(n_workers - 1, n_nodes))
    )
    shares = place(n_nodes, 4, n_workers, sorted(alone))
    assert sorted(n for s in shares for n in s.nodes) == list(range(n_nodes))
    assert [i for s in shares for i in s.shards] == [0, 1, 2, 3]
    assert len(shares) <= n_workers
    for node in alone:
        assert sum(s.nodes == (node,) for s in shares) == 1


def test_place__a_worker_of_a_block_of_its_own_scores_nothing() -> None:
    shares = place(5, 4, 3, [2])
    assert [s.nodes for s in shares] == [(0, 1), (3, 4), (2,)]
    assert [s.shards for s in shares] == [(0, 1), (2, 3), ()]


def test_place__without_scores_workers_without_blocks_are_left_out() -> None:
    assert [s.nodes for s in place(1, 0, 4)] == [(0,)]


def test_place__rank_zero_always_scores_as_it_publishes() -> None:
    for n_workers in range(1, 8):
        assert place(3, 4, n_workers)[0].shards


@pytest.mark.parametrize(
    ("own", "message"),
    [([3], "must name blocks 0 to 2"), ([0, 1], "must leave a worker for the other")],
)
def test_place_nodes__refuses_what_cannot_be_placed(own, message) -> None:
    with pytest.raises(ValueError, match=message):
        place_nodes(3, 2, own)


def test_group_slots__a_block_of_its_own_keeps_its_worker_beside_empty_groups() -> None:
    placed = place_nodes(2, 3, [1])
    assert placed == [(0,), (), (1,)]
    assert group_slots([(0,), (1,)], placed) == [0, 2]


def test_group_slots__groups_of_an_older_placement_are_numbered() -> None:
    assert group_slots([(0, 1), (2,)], place_nodes(3, 3)) == [0, 2]
    assert group_slots([(0, 2), (1,)], place_nodes(3, 3)) == [0, 1]
