"""NumPy archives: what is read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sources import raw
from pipeline.sources.ordering import held_out


@pytest.fixture
def arrays(rng):
    return {
        "x_train": rng.integers(0, 256, (20, 4, 5), dtype=np.uint8),
        "y_train": rng.integers(0, 3, 20),
        "x_test": rng.integers(0, 256, (9, 4, 5), dtype=np.uint8),
        "y_test": np.arange(9) % 3,
    }


def save(path, arrays, *, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_npz__reads_back_what_was_saved(read, tmp_path, arrays, compressed):
    path = save(tmp_path / "a.npz", arrays, compressed=compressed)
    x, y, test_x, test_y, data = read("npz", path)
    np.testing.assert_array_equal(x[:, 0], arrays["x_train"])
    np.testing.assert_array_equal(y, arrays["y_train"])
    np.testing.assert_array_equal(test_x[:, 0], arrays["x_test"])
    np.testing.assert_array_equal(test_y, arrays["y_test"])
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_npz__channels_may_be_first_or_last(read, tmp_path, arrays, rng, axes):
    first = rng.integers(0, 256, (20, 3, 6, 7), dtype=np.uint8)
    arrays = {
        **arrays,
        "y_train": arrays["y_train"][:, None],
        "class_names": ["a", "b", "c"],
    }
    arrays["x_train"] = np.ascontiguousarray(first.transpose(axes))
    arrays["x_test"] = arrays["x_train"][:9]
    x, _, _, _, data = read("npz", save(tmp_path / "a.npz", arrays))
    np.testing.assert_array_equal(x, first)
    assert data.class_names == ("a", "b", "c")


def test_npz__floats_are_kept_as_float32(read, tmp_path, arrays, rng):
    values = rng.standard_normal((20, 4, 5))
    arrays |= {"x_train": values, "x_test": values[:9].astype(np.float32)}
    x, *_, data = read("npz", save(tmp_path / "a.npz", arrays))
    assert data.dtype == np.float32
    np.testing.assert_array_equal(x[:, 0], values.astype(np.float32))


def test_npz__one_split_holds_out_one_in_six_of_each_class(read, tmp_path, rng):
    x = rng.integers(0, 256, (24, 3, 3), dtype=np.uint8)
    y = np.arange(24) % 2
    got_x, got_y, test_x, test_y, _ = read(
        "npz", save(tmp_path / "a.npz", {"x": x, "y": y})
    )
    mask = held_out(y)
    np.testing.assert_array_equal(got_x[:, 0], x[~mask])
    np.testing.assert_array_equal(test_x[:, 0], x[mask])
    np.testing.assert_array_equal(got_y, y[~mask])
    assert np.bincount(test_y).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.zeros(20)}, "integers of shape"),
        ({"y_train": np.zeros((20, 3), int)}, "integers of shape"),
        ({"y_train": np.full(20, -1)}, r"in 0…65535; got -1"),
        ({"y_train": np.full(20, 10**6)}, r"in 0…65535; got 1000000"),
        ({"y_train": np.zeros(19, int)}, r"as many as the images \(20\); got 19"),
        ({"y_train": np.array([1, None] * 10)}, "need pickle"),
        ({"x_train": np.zeros((20, 4, 5), object)}, "need pickle"),
        ({"x_train": np.zeros((20, 20))}, "numbers of shape"),
        ({"x_train": np.zeros((20, 4, 6), np.uint8)}, "Make them alike"),
        ({"x_train": np.zeros((20, 4, 5))}, "Make them alike"),
        ({"x_train": np.full((20, 4, 5), 256)}, r"in 0…255; got 256"),
        ({"x_train": np.zeros((5, 4, 20), np.uint8).T}, "C order"),
        ({"class_names": np.array(["a", "b"])}, r"in 0…1; got 2"),
        ({"x_test": np.zeros((9, 4, 0), np.uint8)}, "numbers of shape"),
    ],
)
def test_npz__refuses_arrays_that_break_the_rules(
    read, tmp_path, arrays, change, message
):
    path = save(tmp_path / "a.npz", {**arrays, **change})
    with pytest.raises(ValueError, match=message):
        read("npz", path)


def test_npz__refuses_values_that_are_not_finite(read, tmp_path, arrays):
    values = np.zeros((20, 4, 5))
    values[3, 1, 1] = np.nan
    arrays |= {"x_train": values, "x_test": values[:2], "y_test": [0, 1]}
    with pytest.raises(ValueError, match="finite"):
        read("npz", save(tmp_path / "a.npz", arrays))


def test_npz__refuses_missing_arrays(read, tmp_path, arrays):
    del arrays["y_test"]
    with pytest.raises(
        ValueError, match=r"x_train, y_train, x_test, y_test, or x and y"
    ):
        read("npz", save(tmp_path / "a.npz", arrays))


@pytest.mark.parametrize("compressed", [False, True])
def test_npz__refuses_a_truncated_or_changed_file(read, tmp_path, arrays, compressed):
    path = save(tmp_path / "a.npz", arrays, compressed=compressed)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"whole .npz"):
        read("npz", path)
    changed = bytearray(content)
    changed[300] ^= 0xFF
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"whole .npz"):
        read("npz", path)


def test_npz__refuses_what_unpacks_past_the_limit(read, tmp_path, arrays, monkeypatch):
    arrays["x_train"] = np.zeros((20, 400, 500), np.uint8)
    path = save(tmp_path / "a.npz", arrays, compressed=True)
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="at most 1000000 bytes"):
        read("npz", path)
