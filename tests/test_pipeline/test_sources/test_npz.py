"""NumPy archives: what is read, and what is refused."""

from __future__ import annotations

import io
import zipfile

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
        ({"X_train": np.zeros(3)}, "one array for one thing; got x_train, X_train"),
        ({"class_names": np.array(["a", "b", "a"])}, "must differ; got 'a' 2 times"),
        ({"class_names": np.array(["a", " ", "c"])}, "that can be shown; got ' '"),
        ({"class_names": np.array(["a", "\x1b[2J", "c"])}, "that can be shown"),
        ({"class_names": np.array([b"a", b"\xff", b"c"])}, "not UTF-8"),
        ({"class_names": np.zeros(10**5, "<U1")}, "must be 1…65536 texts"),
        ({"class_names": np.zeros(3, "<U2000")}, "at most 200 letters"),
        ({"class_names": np.array([0.5, 1, 2])}, "must be 1…65536 texts"),
        ({"layout": "CHW"}, "must be NCHW or NHWC; got CHW"),
    ],
)
def test_npz__refuses_arrays_that_break_the_rules(
    read, tmp_path, arrays, change, message
):
    path = save(tmp_path / "a.npz", {**arrays, **change})
    with pytest.raises(ValueError, match=message):
        read("npz", path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e39])
def test_npz__refuses_values_that_are_not_finite_as_float32(
    read, tmp_path, arrays, value
):
    values = np.zeros((20, 4, 5))
    values[3, 1, 1] = value
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


@pytest.mark.parametrize("layout", ["NCHW", "nhwc"])
def test_npz__channels_that_may_be_first_or_last_need_a_word(
    read, tmp_path, arrays, layout
):
    arrays["x_train"] = np.arange(20 * 3 * 16 * 4, dtype=np.uint8).reshape(20, 3, 16, 4)
    arrays["x_test"] = arrays["x_train"][:9]
    with pytest.raises(ValueError, match=r"in one place only; got shape \(20, 3, 16"):
        read("npz", save(tmp_path / "a.npz", arrays))
    arrays["layout"] = layout
    x, *_ = read("npz", save(tmp_path / "b.npz", arrays))
    axes = (0, 1, 2, 3) if layout == "NCHW" else (0, 3, 1, 2)
    np.testing.assert_array_equal(x, arrays["x_train"].transpose(axes))


def test_npz__names_in_bytes_are_read_as_text(read, tmp_path, arrays):
    arrays["class_names"] = np.array(["cat", "dog", "ñ".encode()], dtype="S")
    data = read("npz", save(tmp_path / "a.npz", arrays))[4]
    assert data.class_names == ("cat", "dog", "ñ")


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1000, 2000), (0, 1, 3)])
def test_npz__gaps_between_labels_need_class_names(read, tmp_path, arrays, numbers):
    for split in ("y_train", "y_test"):
        arrays[split] = np.array(numbers)[arrays[split]]
    with pytest.raises(ValueError, match=r"each number there; got 3 numbers up to"):
        read("npz", save(tmp_path / "a.npz", arrays))
    arrays["class_names"] = [f"class {number}" for number in range(2001)]
    data = read("npz", save(tmp_path / "a.npz", arrays))[4]
    assert len(data.class_names) == 2001


def test_ingest__classes_without_a_sample_are_said(tmp_path, arrays):
    from pipeline.store import ingest

    arrays["class_names"] = list("abcd")
    source = save(tmp_path / "a.npz", arrays)
    info = ingest("npz", source=source, store=tmp_path / "a.zarr", val_fraction=0)
    assert info.notes == (
        "Classes without a sample in train: 1, such as d.",
        "Classes without a sample in test: 1, such as d.",
    )


def test_npz__what_is_not_asked_for_is_not_read(read, tmp_path, arrays, monkeypatch):
    arrays |= {"history": np.array([{}, None]), "large": np.zeros(10**6)}
    path = save(tmp_path / "a.npz", arrays, compressed=True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "hello")
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 100_000)
    assert len(read("npz", path)[0]) == 20


def test_npz__an_array_called_twice_is_refused(read, tmp_path, arrays):
    path = save(tmp_path / "a.npz", arrays)
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("x_test.npy", archive.read("x_test.npy"))
    with pytest.raises(
        ValueError, match=r"one array for one thing; got x_test, x_test"
    ):
        read("npz", path)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("X_{}", "Y_{}"),
        ("{}_images", "{}_labels"),
        ("images_{}", "labels_{}"),
        ("{}_x", "{}_y"),
        ("{}_data", "{}_targets"),
    ],
)
def test_npz__names_may_vary(read, tmp_path, arrays, images, labels):
    want = read("npz", save(tmp_path / "a.npz", arrays))
    renamed = {
        (images if key[0] == "x" else labels).format(key[2:]): value
        for key, value in arrays.items()
    }
    got = read("npz", save(tmp_path / "b.npz", renamed))
    for a, b in zip(got[:4], want[:4], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("names", [("images", "labels"), ("data", "target")])
def test_npz__one_split_may_have_other_names(read, tmp_path, arrays, names):
    one = dict(zip(names, (arrays["x_train"], arrays["y_train"]), strict=True))
    data = read("npz", save(tmp_path / "a.npz", one))[4]
    assert data.train.n_samples + data.test.n_samples == 20


def test_npz__arrays_for_val_are_val(tmp_path, arrays):
    from pipeline.store import ingest, open_store

    arrays |= {"x_val": arrays["x_test"][:4], "y_val": arrays["y_test"][:4]}
    source = save(tmp_path / "a.npz", arrays)
    store = open_store(ingest("npz", source=source, store=tmp_path / "a.zarr").path)
    assert (store.n_train, store.n_val, store.n_test) == (20, 4, 9)
    np.testing.assert_array_equal(store.images("val")[:, 0], arrays["x_val"])


def test_npz__a_header_that_lies_is_refused(read, tmp_path, arrays):
    def lying(shape):
        file = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file.getvalue() + bytes(400)

    for shape in [(20, 4, 6), (10**12, 4, 5), (20, -4, -5)]:
        path = save(
            tmp_path / "a.npz", {k: arrays[k] for k in arrays if k != "x_train"}
        )
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x_train.npy", lying(shape))
        with pytest.raises(ValueError, match="`source` must"):
            read("npz", path)


def test_npz__an_archive_whose_places_lie_before_its_start_is_refused(
    read, tmp_path, arrays
):
    source = save(tmp_path / "a.npz", arrays)
    content = source.read_bytes()
    source.write_bytes(content[:4] + content[60:])
    with pytest.raises(ValueError, match=r"`source` must be a whole \.npz"):
        read("npz", source)
