"""Checkpoint files: arrays and JSON only, exact, and refused when damaged."""

from __future__ import annotations

import io
import json
import math
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from blocks.optimisers import Adam
from blocks.window import Window
from pipeline.pack import load, pack, save, tensor, unpack


@dataclass(frozen=True, slots=True)
class Inner:
    rows: tuple[torch.Tensor, ...]
    note: str | None


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner
    index: np.ndarray
    scale: float
    named: dict[int, bool]


def an_outer() -> Outer:
    rows = (torch.arange(6.0).reshape(2, 3), torch.tensor(0.1))
    return Outer(Inner(rows, None), np.arange(3), math.inf, {3: True})


def test_pack__a_state_comes_back_bit_for_bit_through_json() -> None:
    tree, arrays = pack(an_outer())
    back = unpack(json.loads(json.dumps(tree, allow_nan=False)), arrays)
    assert isinstance(back, Outer)
    assert isinstance(back.inner, Inner)
    for a, b in zip(back.inner.rows, an_outer().inner.rows, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    assert (back.scale, back.named, back.inner.note) == (math.inf, {3: True}, None)
    np.testing.assert_array_equal(back.index, np.arange(3))


def test_unpack__puts_tensors_on_the_device_but_those_of_the_host() -> None:
    window = Window.empty(torch.zeros(3)).append(torch.ones(2, 3), [0.5, 0.4], 0, 4)
    back = unpack(*pack(window), torch.device("meta"))
    on_device = {back.anchor.device.type, back.rows.device.type}
    on_host = {t.device.type for t in (back.losses, back.subsets, back.gram)}
    assert (on_device, on_host) == ({"meta"}, {"cpu"})
    assert back.rows.stride() == (16, 1)  # rows start at 64 bytes


def test_pack__arrays_are_copies_of_the_state() -> None:
    state = torch.zeros(3)
    _, arrays = pack(state)
    state += 1
    assert not arrays[0].any()


@pytest.mark.parametrize("value", [object(), {1, 2}, b"raw", Outer, lambda: None])
def test_pack__names_a_type_that_json_and_arrays_cannot_hold(value: Any) -> None:
    with pytest.raises(TypeError, match="`state` must consist of"):
        pack(value)


@pytest.mark.parametrize(
    "name", ["os:system", "pathlib:Path", "antigravity:x", "blocks.nowhere:X", "json:"]
)
def test_unpack__builds_nothing_but_dataclasses_of_loaded_modules(name: str) -> None:
    import sys

    with pytest.raises(ValueError, match="must name dataclasses only"):
        unpack({"type": name, "fields": {}}, [])
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4), (0, 3), ()])
def test_tensor__equals_its_array_in_memory_of_its_own(shape, rng) -> None:
    array = rng.standard_normal(shape).astype(np.float32)
    copy = tensor(array)
    np.testing.assert_array_equal(copy.numpy(), array)
    array += 1
    assert copy.numel() == 0 or not np.array_equal(copy.numpy(), array)


def test_save__the_file_needs_no_pickle_and_holds_none(tmp_path) -> None:
    path = tmp_path / "c.npz"
    save(path, {"state": Adam.zeros(torch.zeros(4)), "outer": an_outer()})
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    with zipfile.ZipFile(path) as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())
        for name in archive.namelist():
            with pytest.raises(ValueError, match=r"."):
                list(pickletools.genops(archive.read(name)))
    assert list(tmp_path.iterdir()) == [path]  # no temporary is left


def test_save__a_failure_leaves_the_older_file_whole(tmp_path) -> None:
    path = tmp_path / "c.npz"
    save(path, {"a": 1})
    with pytest.raises(TypeError):
        save(path, {"a": object()})
    assert load(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_load__a_truncated_file_is_a_clear_error(tmp_path) -> None:
    path = tmp_path / "c.npz"
    save(path, {"x": torch.arange(1000.0)})
    whole = path.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"complete checkpoint file; got .*c.npz"):
            load(path)


def test_load__a_flipped_byte_is_never_another_state(tmp_path, rng) -> None:
    path = tmp_path / "c.npz"
    save(path, {"x": torch.arange(100.0), "outer": an_outer()})
    whole = bytearray(path.read_bytes())
    expected = json.dumps([pack(load(path))[0], [str(load(path)["x"])]])
    for position in rng.integers(len(whole), size=250):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        try:
            found = load(path)
        except ValueError:
            continue
        assert json.dumps([pack(found)[0], [str(found["x"])]]) == expected


def test_load__an_npz_that_would_need_pickle_is_refused(tmp_path) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, tree=np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="`checkpoint` must be"):
        load(path)


def test_load__a_file_whose_archive_is_whole_and_content_is_not_is_refused(
    tmp_path,
) -> None:
    path = tmp_path / "c.npz"
    save(path, {"x": torch.arange(4.0), "y": 1})
    with np.load(path) as file:
        whole = dict(file)
    text = whole["tree"].tobytes()
    other = np.frombuffer(text.replace(b'["y", 1]', b'["y", 2]'), np.uint8)
    assert len(other) == len(whole["tree"])
    changes: list[dict[str, Any]] = [
        {"a0": whole["a0"][::-1]},
        {"a0": whole["a0"].astype(np.float64)},
        {"tree": other},
        {"sha256": whole["sha256"][::-1]},
        {"sha256": None},
        {"a0": None},
    ]
    for change in changes:
        np.savez(path, **{k: v for k, v in (whole | change).items() if v is not None})
        with pytest.raises(ValueError, match="`checkpoint` must be a complete"):
            load(path)
    np.savez(path, **whole)
    assert load(path)["y"] == 1


def test_load__a_file_of_before_there_were_hashes_is_read(tmp_path) -> None:
    path = tmp_path / "c.npz"
    tree, arrays = pack({"x": torch.arange(4.0)})
    text = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    np.savez(path, tree=text, a0=arrays[0])
    assert torch.equal(load(path)["x"], torch.arange(4.0))


def test_load__sizes_that_are_only_claimed_take_no_memory(tmp_path) -> None:
    path = tmp_path / "c.npz"
    header = io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tree.npy", header.getvalue())
    with pytest.raises(ValueError, match="tree of shape"):
        load(path)
    np.savez_compressed(path, tree=np.zeros(10**6, np.uint8))
    with pytest.raises(ValueError, match="tree compressed"):
        load(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="no file"):
        load(path)


@pytest.mark.parametrize("header", [b"{'descr': (((((", b"{'shape': 9, \x00", b""])
def test_load__a_broken_array_header_is_a_clear_error(tmp_path, header) -> None:
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("tree.npy", npy)
    with pytest.raises(ValueError, match="`checkpoint` must be a complete"):
        load(tmp_path / "a.npz")
