"""Who exchanges with whom: graphs, mixing weights, and checks that they are fit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

from blocks.algorithm import step_rng

Graph = Literal["ring", "complete", "erdos-renyi", "matchings"]

_DRAWS = 100  # Erdős–Rényi graphs drawn until one is connected
_EDGES, _PAIRS = 11, 12  # purposes of the generators
_ROUNDING = 1e-12


def adjacency(
    graph: Graph, n_nodes: int, step: int = 0, seed: int = 0, p_edge: float = 0.5
) -> np.ndarray:
    """Return the graph of one step: (N, N) bool, symmetric, nothing on the diagonal.

    Parameters
    ----------
    graph : "ring", "complete", "erdos-renyi" (every edge with probability ``p_edge``;
        the first connected one of 100 draws) or "matchings" (random disjoint pairs,
        drawn anew at every step; with an odd number one node is left out).
    step : int — matters for "matchings" only.
    seed : int — of the random graphs.

    Raises
    ------
    ValueError — if the graph is unknown, or no draw of 100 is connected.
    """
    if graph == "ring":
        nodes = np.arange(n_nodes)
        edges = np.zeros((n_nodes, n_nodes), dtype=bool)
        edges[nodes, (nodes + 1) % n_nodes] = n_nodes > 1
        return edges | edges.T
    if graph == "complete":
        return ~np.eye(n_nodes, dtype=bool)
    if graph == "erdos-renyi":
        return _erdos_renyi(n_nodes, seed, p_edge)
    if graph == "matchings":
        order = step_rng(seed, 0, step, _PAIRS).permutation(n_nodes)
        pairs = order[: n_nodes // 2 * 2].reshape(-1, 2)
        edges = np.zeros((n_nodes, n_nodes), dtype=bool)
        edges[pairs[:, 0], pairs[:, 1]] = True
        return edges | edges.T
    allowed = ", ".join(f'"{name}"' for name in get_args(Graph))
    raise ValueError(f"`graph` must be one of {allowed}; got {graph!r}. Choose one.")


def _erdos_renyi(n_nodes: int, seed: int, p_edge: float) -> np.ndarray:
    for draw in range(_DRAWS):
        uniform = step_rng(seed, 0, draw, _EDGES).random((n_nodes, n_nodes))
        upper = np.triu(uniform < p_edge, 1)
        if is_connected(upper | upper.T):
            return upper | upper.T
    raise ValueError(
        f"`edge_probability` must be large enough for a connected graph; got {p_edge} "
        f"for {n_nodes} nodes: none of {_DRAWS} draws is. Raise it."
    )


def is_connected(edges: np.ndarray) -> bool:
    """Return whether every node can be reached from every other."""
    reached = np.zeros(len(edges), dtype=bool)
    reached[0] = True
    for _ in range(len(edges)):
        reached |= edges[reached].any(axis=0)
    return bool(reached.all())


def joint_window(n_nodes: int) -> int:
    """Steps over which a graph that changes must be connected jointly: 4 N."""
    return 4 * n_nodes


def check_connected(
    graph: Graph, n_nodes: int, seed: int = 0, p_edge: float = 0.5
) -> None:
    """Check that a graph, or its union over a window of steps, is connected.

    "matchings" are checked on their first ``joint_window`` steps.

    Raises
    ------
    ValueError — if it is not, or as ``adjacency``.
    """
    steps = range(joint_window(n_nodes) if graph == "matchings" else 1)
    union = np.zeros((n_nodes, n_nodes), dtype=bool)
    for step in steps:
        union |= adjacency(graph, n_nodes, step, seed, p_edge)
    if not is_connected(union):
        raise ValueError(
            f"`graph` must be connected over {len(steps)} steps; got {graph!r} with "
            f"`graph_seed` {seed} for {n_nodes} nodes. Take another `graph_seed`."
        )


def metropolis_weights(edges: np.ndarray) -> np.ndarray:
    """Return c_ij = 1/(1 + max(deg_i, deg_j)) on edges, c_ii = 1 − Σ_j≠i c_ij.

    Parameters
    ----------
    edges : (N, N) bool — symmetric, nothing on the diagonal.

    Returns
    -------
    (N, N) float64 — symmetric, doubly stochastic, non-negative.
    """
    degrees = edges.sum(axis=1)
    weights = np.where(edges, 1.0 / (1 + np.maximum.outer(degrees, degrees)), 0.0)
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def check_weights(weights: Any, n_nodes: int) -> np.ndarray:
    """Return a user's own mixing weights, checked.

    Parameters
    ----------
    weights : N rows of N numbers; c_ij is what node i gives to node j's message.

    Raises
    ------
    ValueError — if they are not (N, N), finite, ≥ 0 and doubly stochastic (1e-12), or
        the graph of the positive ones does not lead from every node to every other.
    """
    advice = "Build it with `topology.metropolis_weights`."
    try:
        matrix = np.array(weights, dtype=np.float64)
    except ValueError:  # rows of different lengths
        matrix = np.empty(0)
    if matrix.shape != (n_nodes, n_nodes):
        got = [len(row) for row in weights]
        raise ValueError(
            f"`mixing_weights` must have {n_nodes} rows of {n_nodes}, one a node; got "
            f"rows of {got}. {advice}"
        )
    if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
        i, j = np.argwhere(~(np.isfinite(matrix) & (matrix >= 0)))[0]
        raise ValueError(
            f"`mixing_weights` must be finite and ≥ 0; got {matrix[i, j]} at row {i}, "
            f"column {j}. {advice}"
        )
    for axis, name in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis=axis)
        if np.abs(sums - 1).max() > _ROUNDING * n_nodes:
            worst = int(np.abs(sums - 1).argmax())
            raise ValueError(
                f"`mixing_weights` must be doubly stochastic; {name} {worst} sums to "
                f"{sums[worst]:.6g}. {advice}"
            )
    # Doubly stochastic: reachable one way round is reachable the other way round.
    if not is_connected(matrix > 0):
        raise ValueError(
            "`mixing_weights` must be those of a connected graph; got nodes that never "
            f"hear of each other. {advice}"
        )
    return matrix


@lru_cache(maxsize=64)
def mixing_weights(
    graph: Graph,
    n_nodes: int,
    step: int,
    seed: int,
    p_edge: float,
    given: tuple[tuple[float, ...], ...] = (),
) -> np.ndarray:
    """Return the weights of one step: those ``given``, or Metropolis ones of the graph.

    Returns
    -------
    (N, N) float64, read-only.
    """
    if given:
        weights = check_weights(given, n_nodes)
    else:
        weights = metropolis_weights(adjacency(graph, n_nodes, step, seed, p_edge))
    weights.setflags(write=False)
    return weights
