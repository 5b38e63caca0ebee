"""Graphs and mixing weights: what they are, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.topology import (
    adjacency,
    check_connected,
    check_weights,
    is_connected,
    joint_window,
    metropolis_weights,
    mixing_weights,
)

GRAPHS = ("ring", "complete", "erdos-renyi", "matchings")
sizes = st.integers(2, 9)
steps = st.integers(0, 50)


@given(st.sampled_from(GRAPHS), sizes, steps, st.integers(0, 99))
def test_graph__is_symmetric_without_loops(graph, n_nodes, step, seed):
    edges = adjacency(graph, n_nodes, step, seed)
    assert edges.shape == (n_nodes, n_nodes)
    assert edges.dtype == bool
    assert (edges == edges.T).all()
    assert not edges.diagonal().any()


@given(st.sampled_from(GRAPHS), sizes, steps, st.integers(0, 99))
def test_metropolis__is_doubly_stochastic_on_the_edges(graph, n_nodes, step, seed):
    edges = adjacency(graph, n_nodes, step, seed)
    weights = metropolis_weights(edges)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-14)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-14)
    assert (weights >= 0).all()
    assert (weights.diagonal() > 0).all()
    off = ~np.eye(n_nodes, dtype=bool)
    assert ((weights > 0) == edges)[off].all()


def test_metropolis__by_hand_on_a_path_of_three():
    path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)
    third = 1 / 3
    expected = [[2 * third, third, 0], [third, third, third], [0, third, 2 * third]]
    np.testing.assert_allclose(metropolis_weights(path), expected, atol=1e-15)


@pytest.mark.parametrize(("n_nodes", "degree"), [(1, 0), (2, 1), (3, 2), (6, 2)])
def test_ring__has_two_neighbours_where_there_are_as_many(n_nodes, degree):
    edges = adjacency("ring", n_nodes)
    assert (edges.sum(axis=1) == degree).all()
    assert is_connected(edges)


def test_complete__weighs_all_nodes_alike():
    weights = metropolis_weights(adjacency("complete", 5))
    np.testing.assert_allclose(weights, 0.2, atol=1e-15)


@given(sizes, st.integers(0, 99))
def test_erdos_renyi__is_connected_and_a_function_of_the_seed(n_nodes, seed):
    edges = adjacency("erdos-renyi", n_nodes, 0, seed)
    assert is_connected(edges)
    assert (edges == adjacency("erdos-renyi", n_nodes, 7, seed)).all()


def test_erdos_renyi__with_certain_edges_is_complete():
    assert (adjacency("erdos-renyi", 4, p_edge=1.0) == adjacency("complete", 4)).all()


def test_erdos_renyi__of_other_seeds_is_another_graph():
    drawn = {adjacency("erdos-renyi", 6, 0, s).tobytes() for s in range(20)}
    assert len(drawn) > 10


def test_matchings__pair_every_node_once_and_change():
    seen = set()
    for step in range(20):
        edges = adjacency("matchings", 6, step)
        assert (edges.sum(axis=1) == 1).all()
        seen.add(edges.tobytes())
    assert len(seen) > 8


def test_matchings__of_an_odd_number_leave_one_out_in_turn():
    alone = set()
    for step in range(30):
        degrees = adjacency("matchings", 5, step).sum(axis=1)
        assert sorted(degrees) == [0, 1, 1, 1, 1]
        alone.add(int(degrees.argmin()))
    assert alone == set(range(5))


@pytest.mark.parametrize("n_nodes", range(1, 12))
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph__passes_the_check(graph, n_nodes):
    check_connected(graph, n_nodes)


def test_matchings__are_refused_if_their_union_is_not_connected(monkeypatch):
    stuck = adjacency("matchings", 4, 0)
    monkeypatch.setattr("blocks.topology.adjacency", lambda *_: stuck)
    rule = rf"over {joint_window(4)} steps; got 'matchings'.*another `graph_seed`"
    with pytest.raises(ValueError, match=rule):
        check_connected("matchings", 4)


def test_erdos_renyi__is_refused_where_no_draw_is_connected():
    with pytest.raises(ValueError, match=r"`edge_probability` must be.*0\.001.*Raise"):
        check_connected("erdos-renyi", 8, p_edge=0.001)


def test_unknown_graph__is_refused_by_name():
    with pytest.raises(ValueError, match=r"`graph` must be one of .*'star'"):
        adjacency("star", 3)


@pytest.mark.parametrize("graph", GRAPHS)
def test_own_weights__that_are_fit_are_kept(graph):
    weights = metropolis_weights(adjacency("ring", 5))
    rows = tuple(map(tuple, weights.tolist()))
    assert (mixing_weights(graph, 5, 3, 0, 0.5, rows) == weights).all()


def test_own_weights__need_not_be_symmetric():
    around = np.roll(np.eye(3), 1, axis=1) * 0.5 + np.eye(3) * 0.5
    assert (check_weights(around.tolist(), 3) == around).all()


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        ([[1.0]], "2 rows of 2.*rows of .1."),
        ([[0.5, 0.5], [1.0]], r"2 rows of 2.*rows of .2, 1."),
        ([[1.5, -0.5], [-0.5, 1.5]], "≥ 0; got -0.5 at row 0, column 1"),
        ([[float("nan"), 1.0], [1.0, 0.0]], "finite.*got nan at row 0, column 0"),
        ([[0.5, 0.4], [0.5, 0.5]], "doubly stochastic; row 0 sums to 0.9"),
        ([[0.5, 0.5], [0.6, 0.4]], "doubly stochastic; column 0 sums to 1.1"),
        ([[1.0, 0.0], [0.0, 1.0]], "connected"),
    ],
)
def test_own_weights__that_are_not_fit_are_refused(weights, rule):
    with pytest.raises(ValueError, match=f"`mixing_weights` must.*{rule}"):
        check_weights(weights, 2)


def test_weights__cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        mixing_weights("ring", 3, 0, 0, 0.5)[0, 0] = 1.0
