"""Files of folders and archives: none vanishes, none counts twice, none hangs."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

from pipeline.sources import members, raw
from pipeline.sources.members import open_members
from pipeline.sources.notes import Notes
from pipeline.sources.streams import unpacked_file


def names(source, notes=None):
    with open_members(source, notes or Notes()) as found:
        return found.files


def arrays_of(got):
    return [a.tolist() for a in got[:4]]


def test_image_folder__a_linked_class_folder_is_read(read, tmp_path, pets, as_folder):
    plain = read("image-folder", as_folder(tmp_path / "plain", pets))
    linked = as_folder(tmp_path / "linked", {k: pets[k] for k in pets if "cat" in k})
    (linked / "dog").symlink_to(tmp_path / "plain" / "dog")
    got = read("image-folder", linked)
    assert got[4].class_names == ("cat", "dog")
    assert arrays_of(got) == arrays_of(plain)


def test_image_folder__a_link_in_a_circle_is_refused(read, tmp_path, pets, as_folder):
    source = as_folder(tmp_path / "f", pets)
    (source / "cat" / "again").symlink_to(source)
    with pytest.raises(ValueError, match="link to a folder around it"):
        read("image-folder", source)


@pytest.mark.parametrize("kind", ["pipe", "endless", "dangling"])
def test_image_folder__what_is_no_file_is_refused_before_it_is_read(
    read, tmp_path, pets, as_folder, kind
):
    source = as_folder(tmp_path / "f", pets)
    strange = source / "cat" / "x.png"
    if kind == "pipe":
        os.mkfifo(strange)
    else:
        strange.symlink_to("/dev/zero" if kind == "endless" else "nowhere")
    with pytest.raises(ValueError, match=r"must hold files and folders.*cat/x.png"):
        read("image-folder", source)


def test_members__a_file_that_became_a_pipe_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    with open_members(tmp_path, Notes()) as found:
        (tmp_path / "x.png").unlink()
        os.mkfifo(tmp_path / "x.png")
        with pytest.raises(ValueError, match="no regular file"):
            found.read("x.png")


@pytest.mark.parametrize("packed", ["folder", "zip", "tar"])
def test_members__files_are_limited(
    tmp_path, monkeypatch, packed, as_folder, as_zip, as_tar
):
    monkeypatch.setattr(members, "MAX_FILE_BYTES", 100)
    pack = {"folder": as_folder, "zip": as_zip, "tar": as_tar}[packed]
    source = pack(tmp_path / "s", {"a/0.png": bytes(101)})
    with (
        pytest.raises(ValueError, match=r"at most 100 bytes; got 101 .*a.*0.png"),
        open_members(source, Notes()) as found,
    ):
        found.read("a/0.png")


@pytest.mark.parametrize("wrap", ["{}", "./{}", "pets/{}", "./a/./pets/{}"])
@pytest.mark.parametrize("packed", ["a.zip", "a.tar", "a.tar.gz"])
def test_image_folder__an_archive_reads_as_the_folder_it_holds(
    read, tmp_path, pets, as_folder, as_zip, as_tar, wrap, packed
):
    plain = read("image-folder", as_folder(tmp_path / "f", pets))
    pack = as_zip if packed.endswith("zip") else as_tar
    source = pack(tmp_path / packed, {wrap.format(k): v for k, v in pets.items()})
    got = read("image-folder", source)
    assert got[4].class_names == ("cat", "dog")
    assert arrays_of(got) == arrays_of(plain)


def test_image_folder__backslashes_of_a_zip_are_folders(read, tmp_path, pets, as_zip):
    files = {f"pets/{k}".replace("/", "\\"): v for k, v in pets.items()}
    source = as_zip(tmp_path / "a.zip", {"pets\\": b"", **files})
    assert read("image-folder", source)[4].class_names == ("cat", "dog")


def zip_called(path, name: bytes, *, extra=b""):
    """Write a zip of one file with a name in raw bytes, and no flag for UTF-8."""
    head = struct.pack(
        "<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(b"x"), 1, 1, len(name), len(extra)
    )
    local = b"PK\3\4" + head + name + extra + b"x"
    central = (
        b"PK\1\2"
        + struct.pack("<H", 20)
        + head
        + struct.pack("<HHHII", 0, 0, 0, 0, 0)
        + name
        + extra
    )
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)
    return path


def test_members__zip_names_are_what_their_packer_meant(tmp_path):
    meant = "Bär/ñ.png"
    packed = meant.encode("cp437")
    beside = meant.encode()
    field = struct.pack("<BI", 1, zlib.crc32(packed)) + beside
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    a, b, c = (tmp_path / f"{name}.zip" for name in "abc")
    assert names(zip_called(a, meant.encode())) == [meant]
    assert names(zip_called(b, packed)) == [meant]
    assert names(zip_called(c, packed, extra=extra)) == [meant]


def test_members__letters_are_composed(tmp_path, as_folder, as_zip):
    files = {"train/Ba\u0308r/0.png": b"a", "test/Bär/0.png": b"b"}
    want = ["test/Bär/0.png", "train/Bär/0.png"]
    assert sorted(names(as_folder(tmp_path / "f", files))) == want
    assert sorted(names(as_zip(tmp_path / "f.zip", files))) == want


@pytest.mark.parametrize("packed", ["folder", "zip"])
def test_members__two_files_of_one_name_are_refused(
    tmp_path, as_folder, as_zip, packed
):
    files = {"Ba\u0308r/0.png": b"a", "Bär/0.png": b"b"}
    pack = as_folder if packed == "folder" else as_zip
    with pytest.raises(ValueError, match=r"name each file once.*Bär/0.png"):
        names(pack(tmp_path / "s", files))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("packed", ["zip", "tar"])
def test_members__a_file_that_is_there_twice_counts_once_and_is_noted(tmp_path, packed):
    path = tmp_path / "a"
    if packed == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for _ in range(2):
                archive.writestr("cat/0.png", b"x")
    else:
        (tmp_path / "x").write_bytes(b"x")
        with tarfile.open(path, "w") as archive:
            for name in ("cat/0.png", "./cat/0.png"):
                archive.add(tmp_path / "x", name)
    notes = Notes()
    assert names(path, notes) == ["cat/0.png"]
    assert notes.sentences() == [
        "Files that the archive holds twice, read once: 1, such as cat/0.png."
    ]


def test_members__links_in_archives_are_refused(tmp_path):
    info = zipfile.ZipInfo("cat/0.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    link = tarfile.TarInfo("cat/0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(link)
    for source in (tmp_path / "a.zip", tmp_path / "a.tar"):
        with pytest.raises(ValueError, match=r"files and folders; got a link"):
            names(source)


def test_members__a_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "f").mkdir()
    with open(os.path.join(os.fsencode(tmp_path / "f"), b"gar\xe7on.png"), "wb"):
        pass
    with pytest.raises(ValueError, match=r"names in UTF-8; got gar\\udce7on.png"):
        names(tmp_path / "f")


def test_members__a_tar_is_limited_and_whole(tmp_path, as_tar, monkeypatch, pets):
    source = as_tar(tmp_path / "a.tar.gz", {"cat/big.png": bytes(10**6), **pets})
    content = source.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        names(tmp_path / "cut.tar.gz")
    plain = as_tar(tmp_path / "a.tar", pets).read_bytes()
    changed = bytearray(plain)
    changed[1024] ^= 0xFF  # in the second header: tarfile takes it for the end
    for broken in (plain[:600], plain[:1024], plain[:1500], changed):
        (tmp_path / "broken.tar").write_bytes(broken)
        with pytest.raises(ValueError, match="whole tar"):
            names(tmp_path / "broken.tar")
    (tmp_path / "text.gz").write_bytes(b"\x1f\x8b hello")
    with pytest.raises(ValueError, match="truncated or damaged"):
        names(tmp_path / "text.gz")
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 10**6 - 1)
    with pytest.raises(ValueError, match="unpack to at most"):
        names(source)


def test_members__a_tar_header_that_would_fill_the_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**31
    blocks = tarfile.TarInfo("y").tobuf() + info.tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(blocks + bytes(1024))
    with pytest.raises(ValueError, match="a header of 2147483648 bytes"):
        names(tmp_path / "a.tar")


def test_members__a_tar_is_read_to_the_checksum_of_its_gzip(tmp_path, as_tar, pets):
    source = as_tar(tmp_path / "a.tar.gz", pets)
    content = bytearray(source.read_bytes())
    content[-8] ^= 1
    source.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        names(source)


@pytest.mark.parametrize("kind", ["image-folder", "npz"])
def test_source__a_zip_without_some_of_its_bytes_is_a_clear_error(
    read, tmp_path, pets, as_zip, kind
):
    if kind == "npz":
        source = tmp_path / "a.npz"
        np.savez(source, x=np.zeros((12, 3, 3), np.uint8), y=np.arange(12) % 2)
    else:
        source = as_zip(tmp_path / "a.zip", pets)
    content = source.read_bytes()
    for start in range(0, len(content) - 90, 61):
        source.write_bytes(content[:start] + content[start + 90 :])
        with pytest.raises(ValueError, match="`source` must"):
            read(kind, source)


def test_image_folder__a_packed_member_that_is_damaged_is_refused(
    read, tmp_path, pets, as_zip
):
    source = as_zip(tmp_path / "a.zip", pets)
    content = bytearray(source.read_bytes())
    content[60] ^= 0xFF
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"whole files.*cat/0.png"):
        read("image-folder", source)


def test_image_folder__copies_in_test_are_said(tmp_path, pets, as_folder):
    from pipeline.store import ingest

    files = {f"train/{k}": v for k, v in pets.items()}
    files |= {f"test/{k[:4]}9.png": pets[k] for k in ("cat/0.png", "dog/0.png")}
    source = as_folder(tmp_path / "f", files)
    info = ingest("image-folder", source=source, store=tmp_path / "s.zarr")
    assert info.notes[0].startswith("Test images that are in train or val as well")


def test_notes__count_by_kind_with_the_first_example():
    notes = Notes()
    for name in ("a", "b"):
        notes.add("odd files", name)
    notes.add("even files", "c", 4)
    assert notes.sentences() == [
        "Odd files: 2, such as a.",
        "Even files: 4, such as c.",
    ]


def test_image_folder__a_zip_whose_places_lie_before_its_start_is_refused(
    read, tmp_path, pets, as_zip
):
    source = as_zip(tmp_path / "a.zip", pets)
    content = source.read_bytes()
    source.write_bytes(content[:4] + content[60:])
    with pytest.raises(ValueError, match=r"`source` must hold whole files"):
        read("image-folder", source)


def test_unpacked_file__a_full_disk_names_the_folder_of_temporary_files(tmp_path):
    source = tmp_path / "a.tar.gz"
    with (
        pytest.raises(RuntimeError, match=f"must have room on its disk .*{source}"),
        unpacked_file(source),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
