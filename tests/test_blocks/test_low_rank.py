"""Claims of `blocks.low_rank`: which matrices a block has, and what perturbs them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from blocks.antithetic import antithetic_gradient
from blocks.layout import Layout
from blocks.low_rank import LowRank, draw_directions, find_matrices
from blocks.partition import partition
from blocks.probes import Dense, directions

MLP = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
CONV = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 6)
)
SPECS = ["all", "by_layer", "by_unit:3", "by_size:5", "random:3:1"]


def matrices_of_blocks(module, spec, rank=1):
    layout = Layout.from_module(module)
    return [
        (block, find_matrices(block.indices, layout, rank))
        for block in partition(spec, module)
    ]


def hadamard(size):
    matrix = torch.ones((1, 1), dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat(
            [torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]
        )
    return matrix


def one_matrix(left, right):
    """Directions of one matrix, from (n, R, rows) and (n, R, columns)."""
    rows, columns = left.shape[2], right.shape[2]
    place = np.array([[0, rows, columns]])
    rest = left.new_empty((len(left), 0))
    return LowRank(rows * columns, place, (left,), (right,), rest)


# -- matrices of a block ---------------------------------------------------------------


def test_find_matrices__whole_network_has_one_a_weight():
    [(_, found)] = matrices_of_blocks(MLP, "all")
    assert found.tolist() == [[0, 8, 12], [96 + 8, 5, 8]]


def test_find_matrices__convolution_is_channels_by_the_rest():
    [(_, found)] = matrices_of_blocks(CONV, "all")
    assert found.tolist() == [[0, 4, 27], [108 + 4 + 8, 6, 16]]


def test_find_matrices__groups_of_units_own_their_rows():
    found = [rows.tolist() for _, rows in matrices_of_blocks(MLP, "by_unit:3")]
    assert found == [[[0, 4, 12]], [[0, 4, 12]], [[0, 5, 8]]]


def test_find_matrices__rows_owned_in_part_are_left_out():
    # 149 parameters in 5 runs of 30: the first owns rows 0 and 1 and half of row 2.
    (_, first), (_, second), *_ = matrices_of_blocks(MLP, "by_size:5")
    assert first.tolist() == [[0, 2, 12]]
    assert second.tolist() == [[6, 2, 12]]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("module", [MLP, CONV], ids=["mlp", "conv"])
def test_find_matrices__entries_are_whole_rows_of_one_weight(module, spec):
    layout = Layout.from_module(module)
    for block, found in matrices_of_blocks(module, spec):
        for at, rows, columns in found.tolist():
            places = block.indices[at : at + rows * columns]
            [segment] = [s for s in layout.segments if s.start <= places[0] < s.stop]
            assert (np.diff(places) == 1).all()
            assert places[-1] < segment.stop
            assert segment.size == segment.shape[0] * columns
            assert (places[0] - segment.start) % columns == 0


def test_find_matrices__rank_that_saves_no_number_leaves_the_matrix_dense():
    [(_, found)] = matrices_of_blocks(MLP, "all", rank=4)  # 4·(5 + 8) > 5·8
    assert found.tolist() == [[0, 8, 12]]
    [(_, none)] = matrices_of_blocks(MLP, "all", rank=0)
    assert none.shape == (0, 3)


# -- their directions ------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_directions__have_identity_covariance_over_all_hadamard_columns(rank):
    rows, columns = (torch.cat([h, -h]) for h in (hadamard(2), hadamard(4)))
    pairs = list(itertools.product(rows, columns))
    designs = list(itertools.product(pairs, repeat=rank))
    left = torch.stack([torch.stack([a for a, _ in d]) for d in designs])
    right = torch.stack([torch.stack([b for _, b in d]) for d in designs])
    dense = one_matrix(left, right).dense()
    covariance = dense.T @ dense / len(dense)
    assert float((covariance - torch.eye(8, dtype=torch.float64)).abs().max()) < 1e-12
    assert float(dense.mean(0).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
@pytest.mark.parametrize("rank", [1, 2])
def test_directions__have_identity_covariance_with_entries_outside(kind, rank):
    matrices, n = np.array([[1, 3, 5]]), 40_000
    dense = draw_directions(0, 0, 0, n, 18, kind, rank, matrices).dense()
    covariance = dense.T @ dense / n
    # Five standard errors; the fourth moment of a product of normals is 9.
    assert torch.allclose(covariance, torch.eye(18), atol=5 * (9 / n) ** 0.5)


def test_raw_estimate__is_exact_over_a_complete_orthogonal_design(rng):
    pairs = list(itertools.product(hadamard(4), hadamard(8)))
    left = torch.stack([a[None] for a, _ in pairs])
    right = torch.stack([b[None] for _, b in pairs])
    dirs = one_matrix(left, right)
    slope = torch.tensor(rng.standard_normal(32))
    root = torch.tensor(rng.standard_normal((32, 32)))

    def loss(x):
        return x @ slope + 0.5 * ((x @ root @ root.T) * x).sum(1)

    rows = dirs.dense()
    values = torch.stack([loss(0.1 * rows), loss(-0.1 * rows)], 1).flatten().numpy()
    estimate = antithetic_gradient(values, 0.1, dirs)
    assert float((estimate - slope).norm()) <= 1e-10 * float(slope.norm())


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("module", [MLP, CONV], ids=["mlp", "conv"])
def test_combine__is_the_weighted_sum_of_the_directions(module, spec, rank, kind, rng):
    weights = torch.tensor(rng.standard_normal(7), dtype=torch.float32)
    for block, matrices in matrices_of_blocks(module, spec, rank):
        dirs = draw_directions(3, block.index, 5, 7, block.size, kind, rank, matrices)
        expected = (weights[:, None].double() * dirs.dense().double()).sum(0)
        torch.testing.assert_close(
            dirs.combine(weights).double(), expected, rtol=1e-5, atol=1e-5
        )


def test_dense__of_some_pairs_is_a_part_of_all():
    dirs = draw_directions(1, 0, 0, 9, 50, "gaussian", 2, np.array([[4, 6, 7]]))
    assert torch.equal(dirs.dense(2, 6), dirs.dense()[2:6])
    assert dirs.n_pairs == 9


@pytest.mark.parametrize("rank", [1, 2])
def test_directions__of_a_matrix_have_the_rank_asked_for(rank):
    dirs = draw_directions(1, 0, 0, 3, 200, "sign", rank, np.array([[8, 10, 16]]))
    for row in dirs.dense():
        assert int(torch.linalg.matrix_rank(row[8:168].view(10, 16))) == rank


def test_directions__of_signs_and_rank_one_are_signs():
    dirs = draw_directions(1, 0, 0, 3, 200, "sign", 1, np.array([[8, 10, 16]]))
    assert set(dirs.dense().unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
def test_draw_directions__same_numbers_give_the_same_bits(kind):
    def drawn(seed=3, node=2, step=7):
        torch.manual_seed(step)
        matrices = np.array([[8, 10, 16]])
        return draw_directions(seed, node, step, 5, 200, kind, 2, matrices).dense()

    assert torch.equal(drawn(), drawn())
    for other in ({"seed": 4}, {"node": 1}, {"step": 8}):
        assert not torch.equal(drawn(), drawn(**other))


@pytest.mark.parametrize("rank", [0, 2])
def test_draw_directions__without_rank_or_matrix_are_dense_and_as_ever(rank):
    matrices = np.array([[0, 4, 5]]) if rank == 0 else np.empty((0, 3), dtype=np.int64)
    dirs = draw_directions(3, 1, 2, 4, 30, "gaussian", rank, matrices)
    assert isinstance(dirs, Dense)
    assert torch.equal(dirs.dense(), directions(3, 1, 2, 4, 30, "gaussian"))


def test_draw_directions__negative_rank_is_refused():
    with pytest.raises(ValueError, match=r"`rank` must be 0 .*; got -1"):
        draw_directions(0, 0, 0, 1, 4, "sign", -1)
