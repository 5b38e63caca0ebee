"""Readers of raw formats: what they hand over, and what they refuse."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.sources import cifar10, idx, known, open_source, raw
from pipeline.sources.known import KNOWN, KnownFile, KnownSet
from pipeline.sources.ordering import class_ranks, held_out, interleaved, spread

IDX_NAMES = [file.name for file in KNOWN["mnist"].files]
RECORD = cifar10.RECORD_BYTES


def read(name, source, *, unverified=True, limit=10**9, rows=7):
    """Return train images, train labels, test images, test labels and the data set."""
    with open_source(name, source, unverified=unverified) as data:
        parts = []
        for split in (data.train, data.test):
            pieces = list(split.batches(rows, limit))
            parts += [np.concatenate([piece[i] for piece in pieces]) for i in (0, 1)]
            assert len(parts[-1]) == min(split.n_samples, limit)
        return (*parts, data)


# ---------------------------------------------------------------- IDX


def idx_images(images):
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


def idx_labels(labels):
    return struct.pack(">2I", 0x801, len(labels)) + labels.tobytes()


@pytest.fixture
def idx_folder(tmp_path, rng):
    contents = {}
    for part, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = idx_images(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_labels(labels)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def published(idx_folder, monkeypatch):
    """Let the small files of ``idx_folder`` be the published MNIST."""
    files = tuple(
        KnownFile(
            name, ("",), hashlib.sha256((idx_folder / name).read_bytes()).hexdigest()
        )
        for name in IDX_NAMES
    )
    monkeypatch.setitem(KNOWN, "mnist", KnownSet(files, known.DIGITS))
    return idx_folder


def test_idx__reads_pixels_and_labels_in_order(idx_folder):
    train_x, train_y, test_x, test_y, data = read("mnist", idx_folder)
    content = (idx_folder / IDX_NAMES[0]).read_bytes()
    assert train_x.tobytes() == content[16:]
    assert train_y.tolist() == list((idx_folder / IDX_NAMES[1]).read_bytes()[8:])
    assert train_x.shape == (20, 1, 5, 4)
    assert test_x.shape == (10, 1, 5, 4)
    assert test_y.dtype == np.int64
    assert data.image_shape == (1, 5, 4)


@pytest.mark.parametrize("level", [1, 9])
def test_idx__any_gzip_wrapping_is_the_same_content(published, level):
    plain = read("mnist", published, unverified=False)
    for name in IDX_NAMES:
        content = (published / name).read_bytes()
        (published / name).unlink()
        (published / f"{name}.gz").write_bytes(gzip.compress(content, level))
    packed = read("mnist", published, unverified=False)
    for a, b in zip(plain[:4], packed[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert packed[4].verified


@pytest.mark.parametrize("name", IDX_NAMES)
def test_idx__refuses_changed_content_even_beyond_the_limit(published, name):
    content = bytearray((published / name).read_bytes())
    content[-1] = (content[-1] + 1) % 10
    (published / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"published content.*--unverified"):
        read("mnist", published, unverified=False, limit=3)


def test_idx__unverified_is_recorded(published):
    assert not read("mnist", published, unverified=True)[4].verified


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", IDX_NAMES)
def test_idx__refuses_a_truncated_file(idx_folder, name, packed):
    path = idx_folder / name
    content = path.read_bytes()
    if packed:
        path.write_bytes(gzip.compress(content)[:-9])
    else:
        path.write_bytes(content[:-3])
    with pytest.raises(ValueError, match=r"truncated.*Fetch it again"):
        read("mnist", idx_folder)


@pytest.mark.parametrize("n_bytes", [0, 3, 9])
def test_idx__refuses_a_file_cut_in_its_header(idx_folder, n_bytes):
    path = idx_folder / IDX_NAMES[0]
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match="truncated"):
        read("mnist", idx_folder)


def test_idx__refuses_a_wrong_magic_number(idx_folder):
    labels = (idx_folder / IDX_NAMES[1]).read_bytes()
    (idx_folder / IDX_NAMES[0]).write_bytes(labels)
    with pytest.raises(ValueError, match=r"0x00000803.*got 0x00000801"):
        read("mnist", idx_folder)


def test_idx__refuses_other_numbers_of_labels_than_images(idx_folder):
    (idx_folder / IDX_NAMES[1]).write_bytes(idx_labels(np.zeros(19, np.uint8)))
    with pytest.raises(ValueError, match=r"as many as the images \(20 .*got 19"):
        read("mnist", idx_folder)


def test_idx__refuses_a_label_out_of_range(idx_folder):
    labels = np.zeros(20, np.uint8)
    labels[13] = 10
    (idx_folder / IDX_NAMES[1]).write_bytes(idx_labels(labels))
    with pytest.raises(ValueError, match=r"in 0…9; got 10 at sample 13"):
        read("mnist", idx_folder)


def test_idx__refuses_bytes_after_the_last_image(idx_folder):
    with (idx_folder / IDX_NAMES[2]).open("ab") as file:
        file.write(b"xyz")
    with pytest.raises(ValueError, match="got 3 bytes more"):
        read("mnist", idx_folder)


def test_idx__refuses_images_of_two_sizes(idx_folder, rng):
    images = rng.integers(0, 256, (10, 4, 5), dtype=np.uint8)
    (idx_folder / IDX_NAMES[2]).write_bytes(idx_images(images))
    with pytest.raises(ValueError, match=r"shape \(1, 5, 4\); got \(1, 4, 5\)"):
        read("mnist", idx_folder)


def test_idx__names_the_missing_file(idx_folder):
    (idx_folder / IDX_NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=IDX_NAMES[3]):
        read("mnist", idx_folder)


def test_idx__refuses_what_unpacks_past_the_limit(idx_folder, monkeypatch):
    path = idx_folder / IDX_NAMES[1]
    header = struct.pack(">2I", 0x801, 20)
    path.write_bytes(gzip.compress(header + bytes(5_000_000)))
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(ValueError, match="at most 100000 bytes"):
        read("mnist", idx_folder)


def test_idx__refuses_a_header_of_impossible_size(idx_folder):
    header = struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)
    (idx_folder / IDX_NAMES[0]).write_bytes(header)
    with pytest.raises(ValueError, match="`images` must be"):
        read("mnist", idx_folder)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx__the_real_sets_are_verified_and_have_their_class_counts(
    shared_datasets, name
):
    with open_source(name, shared_datasets / name) as data:
        assert data.verified
        labels = [
            np.concatenate([y for _, y in split.batches(5000, 10**9)])
            for split in (data.train, data.test)
        ]
    if name == "mnist":
        train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        train, test = [6000] * 10, [1000] * 10
    assert np.bincount(labels[0]).tolist() == train
    assert np.bincount(labels[1]).tolist() == test


# ---------------------------------------------------------------- CIFAR-10


def cifar_archive(path, members, *, packed=True):
    with tarfile.open(path, "w:gz" if packed else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def cifar_members(rng):
    names = [
        f"data_batch_{i}.bin" for i in (1, 3, 5, 4, 2)
    ]  # not in order, as published
    members = {}
    for name in ["test_batch.bin", *names]:
        records = rng.integers(0, 256, (10, RECORD), dtype=np.uint8)
        records[:, 0] = rng.permutation(10)
        members[f"cifar-10-batches-bin/{name}"] = records.tobytes()
    members["cifar-10-batches-bin/readme.html"] = b"hello"
    return members


@pytest.mark.parametrize("packed", [True, False])
def test_cifar10__batches_come_in_the_order_of_their_numbers(
    tmp_path, cifar_members, packed
):
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members, packed=packed)
    x, y, test_x, test_y, data = read("cifar10", path)
    raws = [
        cifar_members[f"cifar-10-batches-bin/data_batch_{i}.bin"] for i in range(1, 6)
    ]
    records = np.frombuffer(b"".join(raws), np.uint8).reshape(-1, RECORD)
    np.testing.assert_array_equal(y, records[:, 0])
    np.testing.assert_array_equal(x, records[:, 1:].reshape(-1, 3, 32, 32))
    assert test_x.shape == (10, 3, 32, 32)
    assert len(test_y) == 10
    assert not data.verified


def test_cifar10__members_with_the_published_checksums_are_verified(
    tmp_path, cifar_members, monkeypatch
):
    path = cifar_archive(tmp_path / "c.tar", cifar_members, packed=False)
    hashes = {
        Path(name).name: hashlib.sha256(content).hexdigest()
        for name, content in cifar_members.items()
        if name.endswith(".bin")
    }
    monkeypatch.setattr(cifar10, "CIFAR10_MEMBERS", hashes)
    assert read("cifar10", path, unverified=False)[4].verified


def test_cifar10__refuses_another_archive_with_advice(tmp_path, cifar_members):
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    with pytest.raises(ValueError, match=r"--unverified.*image-folder"):
        read("cifar10", path, unverified=False)


def test_cifar10__refuses_the_python_version_with_advice(tmp_path):
    path = cifar_archive(
        tmp_path / "c.tar.gz", {"cifar-10-batches-py/data_batch_1": b"x"}
    )
    with pytest.raises(ValueError, match="binary version"):
        read("cifar10", path)


def test_cifar10__refuses_half_a_record(tmp_path, cifar_members):
    cifar_members["cifar-10-batches-bin/test_batch.bin"] += b"x"
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    with pytest.raises(ValueError, match="whole records of 3073 bytes"):
        read("cifar10", path)


def test_cifar10__refuses_a_label_out_of_range(tmp_path, cifar_members):
    content = bytearray(cifar_members["cifar-10-batches-bin/data_batch_2.bin"])
    content[0] = 77
    cifar_members["cifar-10-batches-bin/data_batch_2.bin"] = bytes(content)
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    with pytest.raises(ValueError, match="got 77 at sample 10"):
        read("cifar10", path)


def test_cifar10__refuses_a_truncated_archive(tmp_path, cifar_members):
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"truncated|whole tar"):
        read("cifar10", path)


def test_cifar10__refuses_what_is_no_archive(tmp_path):
    path = tmp_path / "c.tar.gz"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(ValueError, match="tar archive"):
        read("cifar10", path)


@pytest.mark.parametrize("name", ["/etc/data_batch_1.bin", "../data_batch_1.bin"])
def test_cifar10__refuses_unsafe_member_names(tmp_path, cifar_members, name):
    path = cifar_archive(tmp_path / "c.tar.gz", {name: b"x", **cifar_members})
    with pytest.raises(ValueError, match=r"relative member names"):
        read("cifar10", path)


def test_cifar10__refuses_what_unpacks_past_the_limit(
    tmp_path, cifar_members, monkeypatch
):
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 50_000)
    with pytest.raises(ValueError, match="at most 50000 bytes"):
        read("cifar10", path)


def test_cifar10__the_shared_sample_needs_unverified(shared_datasets):
    path = shared_datasets / "cifar10" / "cifar-10-binary-sample.tar.gz"
    with pytest.raises(ValueError, match="--unverified"):
        read("cifar10", path, unverified=False)
    _, y, _, test_y, _ = read("cifar10", path, rows=300)
    assert np.bincount(y).tolist() == [100] * 10
    assert np.bincount(test_y).tolist() == [20] * 10


# ---------------------------------------------------------------- image folders


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def pictures(rng):
    """Return path → PNG of train/test folders of two classes, 12 and 6 and 2 each."""
    found = {}
    for split, counts in (("train", (12, 6)), ("test", (2, 2))):
        for name, n in zip(("cat", "dog"), counts, strict=True):
            for i in range(n):
                pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
                found[f"{split}/{name}/{i:03d}.png"] = png(pixels)
    return found


def as_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_image_folder__a_zip_reads_as_the_folder_it_holds(tmp_path, pictures):
    folder = read("image-folder", as_folder(tmp_path / "f", pictures))
    packed = read("image-folder", as_zip(tmp_path / "f.zip", pictures))
    wrapped = read(
        "image-folder",
        as_zip(tmp_path / "w.zip", {f"pets/{k}": v for k, v in pictures.items()}),
    )
    for a, b, c in zip(folder[:4], packed[:4], wrapped[:4], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert folder[4].class_names == ("cat", "dog")
    assert folder[0].shape == (18, 3, 6, 5)
    first = np.asarray(Image.open(io.BytesIO(pictures["train/cat/000.png"])))
    np.testing.assert_array_equal(folder[0][0], first.transpose(2, 0, 1))


def test_image_folder__every_stretch_has_the_classes_shares(tmp_path, pictures):
    _, y, _, _, _ = read("image-folder", as_folder(tmp_path / "f", pictures))
    for start in range(0, 18, 3):
        assert sorted(y[start : start + 3]) == [0, 0, 1]


def test_image_folder__without_test_one_in_six_of_each_class_is_held_out(
    tmp_path, pictures
):
    files = {k.removeprefix("train/"): v for k, v in pictures.items() if "train" in k}
    _, y, _, test_y, _ = read("image-folder", as_folder(tmp_path / "f", files))
    assert np.bincount(y).tolist() == [10, 5]
    assert np.bincount(test_y).tolist() == [2, 1]


def test_image_folder__grey_images_have_one_channel(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    files = {f"a/{i}.png": png(p) for i, p in enumerate(pixels)}
    x, _, test_x, _, _ = read("image-folder", as_folder(tmp_path / "f", files))
    np.testing.assert_array_equal(x[:, 0], pixels[:5])
    np.testing.assert_array_equal(test_x[:, 0], pixels[5:])


def test_image_folder__refuses_an_image_of_another_size(tmp_path, pictures, rng):
    pictures["train/dog/003.png"] = png(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"5 × 6 pixels.*got 6 × 6 .*dog/003.png"):
        read("image-folder", as_folder(tmp_path / "f", pictures))


def test_image_folder__refuses_a_damaged_image(tmp_path, pictures):
    pictures["train/dog/003.png"] = pictures["train/dog/003.png"][:60]
    with pytest.raises(ValueError, match=r"whole image files.*dog/003.png"):
        read("image-folder", as_zip(tmp_path / "f.zip", pictures))


@pytest.mark.parametrize(
    "name", ["/etc/x.png", "../x.png", "train/../../x.png", "C:\\x.png", "a\\..\\x.png"]
)
def test_image_folder__refuses_unsafe_member_names(tmp_path, pictures, name):
    path = as_zip(tmp_path / "f.zip", {name: b"x", **pictures})
    with pytest.raises(ValueError, match="relative member names"):
        read("image-folder", path)


def test_image_folder__refuses_a_zip_bomb(tmp_path, pictures, monkeypatch):
    pictures["train/cat/bomb.png"] = bytes(10_000_000)
    path = as_zip(tmp_path / "f.zip", pictures)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="at most 1000000 bytes"):
        read("image-folder", path)


def test_image_folder__refuses_an_image_that_decodes_to_too_much(tmp_path, pictures):
    file = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(file, "png")
    pictures = {f"train/cat/{i}.png": file.getvalue() for i in range(7)}
    with pytest.raises(ValueError, match="at most 33554432 bytes"):
        read("image-folder", as_zip(tmp_path / "f.zip", pictures))


@pytest.mark.parametrize(
    "names",
    [
        ["0.png"],
        ["train/a/0.png", "valid/a/0.png"],
        ["a/0.png", "a/b/0.png"],
        ["readme.txt"],
        ["train/a/0.png", "test/b/0.png"],
    ],
)
def test_image_folder__refuses_other_layouts(tmp_path, pictures, names):
    image = pictures["train/cat/000.png"]
    with pytest.raises(ValueError, match="`source` must"):
        read("image-folder", as_folder(tmp_path / "f", dict.fromkeys(names, image)))


def test_image_folder__refuses_what_is_no_zip(tmp_path):
    (tmp_path / "f.zip").write_bytes(b"hello")
    with pytest.raises(ValueError, match="whole zip"):
        read("image-folder", tmp_path / "f.zip")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "image-folder", "npz"])
def test_source__missing_is_a_clear_error(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--from"):
        read(name, tmp_path / "nowhere")


def test_source__unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"digits, mnist.*got 'mnits'"):
        read("mnits", tmp_path)


# ---------------------------------------------------------------- npz


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
def test_npz__reads_back_what_was_saved(tmp_path, arrays, compressed):
    path = save(tmp_path / "a.npz", arrays, compressed=compressed)
    x, y, test_x, test_y, data = read("npz", path)
    np.testing.assert_array_equal(x[:, 0], arrays["x_train"])
    np.testing.assert_array_equal(y, arrays["y_train"])
    np.testing.assert_array_equal(test_x[:, 0], arrays["x_test"])
    np.testing.assert_array_equal(test_y, arrays["y_test"])
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_npz__channels_may_be_first_or_last(tmp_path, arrays, rng, axes):
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


def test_npz__floats_are_kept_as_float32(tmp_path, arrays, rng):
    values = rng.standard_normal((20, 4, 5))
    arrays |= {"x_train": values, "x_test": values[:9].astype(np.float32)}
    x, *_, data = read("npz", save(tmp_path / "a.npz", arrays))
    assert data.dtype == np.float32
    np.testing.assert_array_equal(x[:, 0], values.astype(np.float32))


def test_npz__one_split_holds_out_one_in_six_of_each_class(tmp_path, rng):
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
def test_npz__refuses_arrays_that_break_the_rules(tmp_path, arrays, change, message):
    path = save(tmp_path / "a.npz", {**arrays, **change})
    with pytest.raises(ValueError, match=message):
        read("npz", path)


def test_npz__refuses_values_that_are_not_finite(tmp_path, arrays):
    values = np.zeros((20, 4, 5))
    values[3, 1, 1] = np.nan
    arrays |= {"x_train": values, "x_test": values[:2], "y_test": [0, 1]}
    with pytest.raises(ValueError, match="finite"):
        read("npz", save(tmp_path / "a.npz", arrays))


def test_npz__refuses_missing_arrays(tmp_path, arrays):
    del arrays["y_test"]
    with pytest.raises(
        ValueError, match=r"x_train, y_train, x_test, y_test, or x and y"
    ):
        read("npz", save(tmp_path / "a.npz", arrays))


@pytest.mark.parametrize("compressed", [False, True])
def test_npz__refuses_a_truncated_or_changed_file(tmp_path, arrays, compressed):
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


def test_npz__refuses_what_unpacks_past_the_limit(tmp_path, arrays, monkeypatch):
    arrays["x_train"] = np.zeros((20, 400, 500), np.uint8)
    path = save(tmp_path / "a.npz", arrays, compressed=True)
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="at most 1000000 bytes"):
        read("npz", path)


# ---------------------------------------------------------------- digits and orders


def test_digits__are_scikit_learns_images_spread_over_the_splits():
    from sklearn.datasets import load_digits

    x, y, test_x, test_y, data = read("digits", None, unverified=False)
    pixels, labels = load_digits(return_X_y=True)
    expected = np.rint(pixels * (255 / 16)).astype(np.uint8)

    def rows(images, classes):
        flat = np.column_stack([images.reshape(len(images), -1), classes])
        return sorted(map(bytes, flat.astype(np.uint8)))

    got_x, got_y = np.concatenate([x, test_x]), np.concatenate([y, test_y])
    assert rows(got_x, got_y) == rows(expected, labels)
    assert len(test_y) == 296
    assert data.verified
    shares = np.bincount(y[-150:], minlength=10)  # what val takes
    assert shares.min() >= 8


def test_digits__refuse_a_source(tmp_path):
    with pytest.raises(ValueError, match="without --from"):
        read("digits", tmp_path)


def test_class_ranks__count_within_each_class():
    assert class_ranks(np.array([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]
    assert class_ranks(np.array([], dtype=int)).tolist() == []


def test_orders__are_permutations(rng):
    labels = rng.integers(0, 4, 101)
    assert sorted(interleaved(labels)) == list(range(101))
    assert sorted(spread(101)) == list(range(101))


def test_idx_module__is_what_the_known_names_use():
    assert idx.IMAGES_MAGIC == 2051
    assert idx.LABELS_MAGIC == 2049
