"""CIFAR-10's binary archive: what is read, and what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import cifar10, raw

RECORD = cifar10.RECORD_BYTES


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
    read, tmp_path, cifar_members, packed
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


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10__its_folder_reads_as_the_archive(
    read, tmp_path, cifar_members, as_folder, monkeypatch, inside
):
    source = as_folder(tmp_path / "f", cifar_members)
    want = read("cifar10", cifar_archive(tmp_path / "c.tar", cifar_members))
    got = read("cifar10", source / inside)
    for a, b in zip(got[:4], want[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="published binary archive"):
        read("cifar10", source / inside, unverified=False)
    published = {
        Path(name).name: hashlib.sha256(content).hexdigest()
        for name, content in cifar_members.items()
        if name.endswith(".bin")
    }
    monkeypatch.setattr(cifar10, "CIFAR10_MEMBERS", published)
    assert read("cifar10", source / inside, unverified=False)[4].verified


def test_cifar10__a_folder_without_its_files_is_refused(read, tmp_path):
    with pytest.raises(ValueError, match=r"got none of them .*cifar-10-batches-bin"):
        read("cifar10", tmp_path)


def test_cifar10__refuses_a_batch_that_is_there_twice(read, tmp_path, cifar_members):
    again = {
        f"again/{Path(name).name}": content for name, content in cifar_members.items()
    }
    path = cifar_archive(tmp_path / "c.tar.gz", {**cifar_members, **again})
    with pytest.raises(ValueError, match=r"each batch once; got a second again/"):
        read("cifar10", path)


def test_cifar10__a_damaged_header_does_not_end_the_archive(
    read, tmp_path, cifar_members
):
    path = cifar_archive(tmp_path / "c.tar", cifar_members, packed=False)
    content = path.read_bytes()
    at = content.index(b"cifar-10-batches-bin/data_batch_4.bin")
    path.write_bytes(content[:at] + b"X" + content[at + 1 :])
    with pytest.raises(ValueError, match="whole tar archive"):
        read("cifar10", path)


def test_cifar10__members_with_the_published_checksums_are_verified(
    read, tmp_path, cifar_members, monkeypatch
):
    path = cifar_archive(tmp_path / "c.tar", cifar_members, packed=False)
    hashes = {
        Path(name).name: hashlib.sha256(content).hexdigest()
        for name, content in cifar_members.items()
        if name.endswith(".bin")
    }
    monkeypatch.setattr(cifar10, "CIFAR10_MEMBERS", hashes)
    assert read("cifar10", path, unverified=False)[4].verified


def test_cifar10__refuses_another_archive_with_advice(read, tmp_path, cifar_members):
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    with pytest.raises(ValueError, match=r"--unverified.*image-folder"):
        read("cifar10", path, unverified=False)


def test_cifar10__refuses_the_python_version_with_advice(read, tmp_path):
    path = cifar_archive(
        tmp_path / "c.tar.gz", {"cifar-10-batches-py/data_batch_1": b"x"}
    )
    with pytest.raises(ValueError, match="binary version"):
        read("cifar10", path)


def test_cifar10__refuses_half_a_record(read, tmp_path, cifar_members):
    cifar_members["cifar-10-batches-bin/test_batch.bin"] += b"x"
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    with pytest.raises(ValueError, match="whole records of 3073 bytes"):
        read("cifar10", path)


def test_cifar10__refuses_a_label_out_of_range(read, tmp_path, cifar_members):
    content = bytearray(cifar_members["cifar-10-batches-bin/data_batch_2.bin"])
    content[0] = 77
    cifar_members["cifar-10-batches-bin/data_batch_2.bin"] = bytes(content)
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    with pytest.raises(ValueError, match="got 77 at sample 10"):
        read("cifar10", path)


def test_cifar10__refuses_a_truncated_archive(read, tmp_path, cifar_members):
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"truncated|whole tar"):
        read("cifar10", path)


def test_cifar10__refuses_what_is_no_archive(read, tmp_path):
    path = tmp_path / "c.tar.gz"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(ValueError, match="tar archive"):
        read("cifar10", path)


@pytest.mark.parametrize("name", ["/etc/data_batch_1.bin", "../data_batch_1.bin"])
def test_cifar10__refuses_unsafe_member_names(read, tmp_path, cifar_members, name):
    path = cifar_archive(tmp_path / "c.tar.gz", {name: b"x", **cifar_members})
    with pytest.raises(ValueError, match=r"relative member names"):
        read("cifar10", path)


def test_cifar10__refuses_what_unpacks_past_the_limit(
    read, tmp_path, cifar_members, monkeypatch
):
    path = cifar_archive(tmp_path / "c.tar.gz", cifar_members)
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 50_000)
    with pytest.raises(ValueError, match="at most 50000 bytes"):
        read("cifar10", path)


def test_cifar10__the_shared_sample_needs_unverified(read, shared_datasets):
    path = shared_datasets / "cifar10" / "cifar-10-binary-sample.tar.gz"
    with pytest.raises(ValueError, match="--unverified"):
        read("cifar10", path, unverified=False)
    _, y, _, test_y, _ = read("cifar10", path, rows=300)
    assert np.bincount(y).tolist() == [100] * 10
    assert np.bincount(test_y).tolist() == [20] * 10
