import gc
import pickle
import threading

import pytest
import torch

from blocks import window as window_module
from blocks.window import Window, append_rows


def filled(n_records, limit, d=37, k=1, seed=0, subsets=None):
    """A window after some records, and every point and loss that went in."""
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(d, generator=g)
    points = start + 0.01 * torch.randn(n_records, k, d, generator=g)
    losses = torch.rand(n_records, k, generator=g, dtype=torch.float64)
    window = Window.empty(start)
    for i in range(n_records):
        subset = 0 if subsets is None else subsets[i]
        window = window.append(points[i], losses[i].tolist(), subset, limit)
    return window, points.reshape(-1, d), losses.reshape(-1)


@pytest.mark.parametrize(("n_records", "k"), [(3, 1), (10, 1), (47, 1), (9, 4)])
def test_window__holds_the_newest_pairs_and_their_gram_matrix(n_records, k):
    window, points, losses = filled(n_records, limit=10, k=k)
    n = min(n_records * k, 10)
    assert window.n_pairs == n
    assert torch.equal(window.losses, losses[-n:])
    # Anchor and rows are each rounded to float32 once per re-anchoring.
    assert torch.allclose(window.rows + window.anchor, points[-n:], atol=1e-6)
    rows = window.rows.to(torch.float64)
    assert torch.allclose(window.gram, rows @ rows.T, rtol=1e-5, atol=1e-9)
    assert torch.equal(window.gram, window.gram.T)


def test_window__anchor_is_inside_the_window_after_each_length():
    window, points, _ = filled(30, limit=10)
    assert torch.equal(window.rows[-1], torch.zeros(37))
    assert torch.allclose(window.anchor, points[-1], atol=1e-6)


def test_window__drifting_block_keeps_its_gram_matrix_accurate():
    d, limit = 500, 20
    window = Window.empty(torch.ones(d))
    point = torch.ones(d)
    g = torch.Generator().manual_seed(1)
    kept = []
    for _ in range(400):
        point = point + 0.01 * torch.randn(d, generator=g) + 0.05
        kept.append(point)
        window = window.append(point[None], [0.0], 0, limit)
    true = torch.stack(kept[-limit:]).to(torch.float64)
    true = true - true.mean(0)
    got = window.centred(window.centred(window.gram).T)
    scale = float((true @ true.T).trace()) / limit
    assert float((got - true @ true.T).abs().max()) < 1e-5 * scale  # ridge is 1e-4


def test_window__appending_twice_to_one_window_gives_independent_results():
    window, _, _ = filled(5, limit=10)
    before = window.rows.clone()
    first = window.append(torch.full((1, 37), 1.0), [1.0], 0, 10)
    second = window.append(torch.full((1, 37), 2.0), [1.0], 0, 10)
    third = second.append(torch.full((1, 37), 3.0), [1.0], 0, 10)
    assert torch.equal(window.rows, before)
    assert torch.allclose(first.rows[-1] + first.anchor, torch.ones(37))
    assert torch.allclose(second.rows[-1] + second.anchor, torch.full((37,), 2.0))
    assert torch.equal(third.rows[:-1], second.rows)


def test_append_rows__extends_in_place_only_the_newest_window():
    rows = append_rows(torch.empty(0, 8), torch.ones(1, 8), 4)
    newer = append_rows(rows, torch.ones(1, 8), 4)
    assert newer.data_ptr() == rows.data_ptr()
    assert append_rows(rows, torch.ones(1, 8), 4).data_ptr() != rows.data_ptr()


def test_append_rows__threads_do_not_share_a_slot():
    rows = append_rows(torch.empty(0, 8), torch.ones(1, 8), 64)
    results = [None] * 32

    def work(i):
        results[i] = append_rows(rows, torch.full((1, 8), float(i)), 64)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [float(r[-1, 0]) for r in results] == [float(i) for i in range(32)]


def test_window__pickled_one_continues_bit_for_bit():
    window, _, _ = filled(14, limit=10, d=101)
    data = pickle.dumps(window)
    assert len(data) < 10 * 101 * 4 + 101 * 4 + 10 * 10 * 8 + 4_000  # live rows only
    restored = pickle.loads(data)
    g = torch.Generator().manual_seed(9)
    for _ in range(25):
        point = window.anchor + 0.01 * torch.randn(101, generator=g)
        window = window.append(point[None], [1.0], 0, 10)
        restored = restored.append(point[None], [1.0], 0, 10)
        assert torch.equal(window.gram, restored.gram)
        assert torch.equal(window.rows, restored.rows)


def test_window__gram_about_a_centre_is_that_of_displacements_from_it():
    window, points, _ = filled(8, limit=10)
    centre = points[2] + 0.01
    moved = (points - centre).to(torch.float64)
    assert torch.allclose(window.gram_about(centre), moved @ moved.T, atol=1e-7)


def test_window__centring_subtracts_the_mean_of_each_subset():
    window, _, _ = filled(6, limit=10, subsets=[0, 0, 1, 1, 1, 2])
    centred = window.centred(window.losses)
    losses = window.losses
    assert torch.allclose(centred[:2], losses[:2] - losses[:2].mean())
    assert torch.allclose(centred[2:5], losses[2:5] - losses[2:5].mean())
    assert abs(float(centred[5])) < 1e-15


def test_append_rows__memory_is_released_with_the_last_window():
    gc.collect()
    before = len(window_module._ARENAS)
    rows = torch.empty(0, 8)
    for _ in range(100):
        rows = append_rows(rows, torch.ones(1, 8), 10)
    assert len(window_module._ARENAS) <= before + 2
    del rows
    gc.collect()
    assert len(window_module._ARENAS) <= before
