"""IDX files: what is read, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest

from pipeline.sources import known, open_source, raw
from pipeline.sources.known import KNOWN, KnownFile, KnownSet

IDX_NAMES = [file.name for file in KNOWN["mnist"].files]


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


def test_idx__reads_pixels_and_labels_in_order(read, idx_folder):
    train_x, train_y, test_x, test_y, data = read("mnist", idx_folder)
    content = (idx_folder / IDX_NAMES[0]).read_bytes()
    assert train_x.tobytes() == content[16:]
    assert train_y.tolist() == list((idx_folder / IDX_NAMES[1]).read_bytes()[8:])
    assert train_x.shape == (20, 1, 5, 4)
    assert test_x.shape == (10, 1, 5, 4)
    assert test_y.dtype == np.int64
    assert data.image_shape == (1, 5, 4)


@pytest.mark.parametrize("level", [1, 9])
def test_idx__any_gzip_wrapping_is_the_same_content(read, published, level):
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
def test_idx__refuses_changed_content_even_beyond_the_limit(read, published, name):
    content = bytearray((published / name).read_bytes())
    content[-1] = (content[-1] + 1) % 10
    (published / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"published content.*--unverified"):
        read("mnist", published, unverified=False, limit=3)


@pytest.mark.parametrize("inside", ["MNIST/raw", "raw"])
def test_idx__reads_the_folders_of_torchvision(read, idx_folder, tmp_path, inside):
    want = read("mnist", idx_folder)
    outer = tmp_path / "outer"
    (outer / inside).mkdir(parents=True)
    for name in IDX_NAMES:
        (idx_folder / name).rename(outer / inside / name)
    got = read("mnist", outer)
    for a, b in zip(got[:4], want[:4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_source__of_another_kind_says_which_one_to_take(read, tmp_path):
    for name in ("x.npz", "x.zip"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="Ingest it as npz"):
        read("mnist", tmp_path / "x.npz")
    with pytest.raises(ValueError, match="Ingest them as npz"):
        read("image-folder", tmp_path / "x.npz")
    for source in (tmp_path, tmp_path / "x.zip"):
        with pytest.raises(ValueError, match="ndcao ingest image-folder --from"):
            read("npz", source)


def test_idx__unverified_is_recorded(read, published):
    assert not read("mnist", published, unverified=True)[4].verified


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", IDX_NAMES)
def test_idx__refuses_a_truncated_file(read, idx_folder, name, packed):
    path = idx_folder / name
    content = path.read_bytes()
    if packed:
        path.write_bytes(gzip.compress(content)[:-9])
    else:
        path.write_bytes(content[:-3])
    with pytest.raises(ValueError, match=r"truncated.*Fetch it again"):
        read("mnist", idx_folder)


@pytest.mark.parametrize("n_bytes", [0, 3, 9])
def test_idx__refuses_a_file_cut_in_its_header(read, idx_folder, n_bytes):
    path = idx_folder / IDX_NAMES[0]
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match="truncated"):
        read("mnist", idx_folder)


def test_idx__refuses_a_wrong_magic_number(read, idx_folder):
    labels = (idx_folder / IDX_NAMES[1]).read_bytes()
    (idx_folder / IDX_NAMES[0]).write_bytes(labels)
    with pytest.raises(ValueError, match=r"0x00000803.*got 0x00000801"):
        read("mnist", idx_folder)


def test_idx__refuses_other_numbers_of_labels_than_images(read, idx_folder):
    (idx_folder / IDX_NAMES[1]).write_bytes(idx_labels(np.zeros(19, np.uint8)))
    with pytest.raises(ValueError, match=r"as many as the images \(20 .*got 19"):
        read("mnist", idx_folder)


def test_idx__refuses_a_label_out_of_range(read, idx_folder):
    labels = np.zeros(20, np.uint8)
    labels[13] = 10
    (idx_folder / IDX_NAMES[1]).write_bytes(idx_labels(labels))
    with pytest.raises(ValueError, match=r"in 0…9; got 10 at sample 13"):
        read("mnist", idx_folder)


def test_idx__refuses_bytes_after_the_last_image(read, idx_folder):
    with (idx_folder / IDX_NAMES[2]).open("ab") as file:
        file.write(b"xyz")
    with pytest.raises(ValueError, match="got 3 bytes more"):
        read("mnist", idx_folder)


def test_idx__refuses_images_of_two_sizes(read, idx_folder, rng):
    images = rng.integers(0, 256, (10, 4, 5), dtype=np.uint8)
    (idx_folder / IDX_NAMES[2]).write_bytes(idx_images(images))
    with pytest.raises(ValueError, match=r"shape \(1, 5, 4\); got \(1, 4, 5\)"):
        read("mnist", idx_folder)


def test_idx__names_the_missing_file(read, idx_folder):
    (idx_folder / IDX_NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=IDX_NAMES[3]):
        read("mnist", idx_folder)


def test_idx__refuses_what_unpacks_past_the_limit(read, idx_folder, monkeypatch):
    path = idx_folder / IDX_NAMES[1]
    header = struct.pack(">2I", 0x801, 20)
    path.write_bytes(gzip.compress(header + bytes(5_000_000)))
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(ValueError, match="at most 100000 bytes"):
        read("mnist", idx_folder)


def test_idx__refuses_a_header_of_impossible_size(read, idx_folder):
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
