"""Algorithm states as arrays and JSON: nothing that a reader would have to unpickle."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import sys
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.lib.format as npy
import torch

from pipeline.whole_file import whole_file

Arrays = list[np.ndarray]

ROW_BYTES = 64

# What zip, npy and JSON readers raise on a file that is not, or no longer, ours.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError),
    *(AttributeError, ArithmeticError, MemoryError, zipfile.BadZipFile, zlib.error),
    *(SyntaxError, TokenError),
)
_LARGEST_TREE = 64 * 2**20  # bytes of JSON


def pack(value: Any) -> tuple[Any, Arrays]:
    """Split a state into a JSON-able tree and the arrays it refers to.

    Accepts tensors, numpy arrays, numbers, strings, None, tuples, lists, dicts with
    string or integer keys and (frozen) dataclasses of these.

    Raises
    ------
    TypeError — for any other type, naming it.
    """
    held = _Held()
    return _pack(value, held), held.arrays


def unpack(tree: Any, arrays: Arrays, device: torch.device | str = "cpu") -> Any:
    """Rebuild what ``pack`` split; tensors land on ``device`` in their own memory."""
    return _unpack(tree, arrays, torch.device(device), {})


class _Held:
    """Arrays of one packing; a tensor that several places hold is there once."""

    def __init__(self) -> None:
        self.arrays: Arrays = []
        self._places: dict[int, int] = {}

    def tensor(self, value: torch.Tensor) -> int:
        """Index of a tensor's array."""
        place = self._places.get(id(value))  # ``value`` lives on: ids are not reused
        if place is None:
            self.arrays.append(value.detach().cpu().numpy().copy())
            place = self._places[id(value)] = len(self.arrays) - 1
        return place


def tensor(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Copy ``array`` into torch's own memory: the same alignment in every process.

    Rows of a matrix start at 64-byte boundaries, as in a window's own memory, so that
    products of restored and of grown windows are the same to the last bit.
    """
    dtype = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
    if array.ndim == 2:
        per_row = max(ROW_BYTES // array.dtype.itemsize, 1)
        stride = -(-array.shape[1] // per_row) * per_row
        shape = (array.shape[0], stride)
        copy = torch.empty(shape, dtype=dtype, device=device)[:, : array.shape[1]]
    else:
        copy = torch.empty(array.shape, dtype=dtype, device=device)
    return copy.copy_(torch.from_numpy(np.require(array, requirements="W")))


def host(values: torch.Tensor) -> np.ndarray:
    """Return a copy in host memory."""
    array: np.ndarray = values.detach().cpu().numpy().copy()
    return array


def _pack(value: Any, held: _Held) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, torch.Tensor):
        return {"tensor": held.tensor(value)}
    if isinstance(value, np.ndarray):
        held.arrays.append(value.copy())
        return {"array": len(held.arrays) - 1}
    if isinstance(value, (tuple, list)):
        return {"tuple": [_pack(item, held) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, held), _pack(v, held)] for k, v in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {
            f.name: _pack(getattr(value, f.name), held)
            for f in dataclasses.fields(value)
            if f.init
        }
        return {"type": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    raise TypeError(
        "`state` must consist of tensors, arrays, numbers, strings, None, tuples and "
        f"dataclasses; got {type(value).__name__}. Change the algorithm's state."
    )


def _unpack(
    tree: Any, arrays: Arrays, device: torch.device, known: dict[int, torch.Tensor]
) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "float" in tree:
        return float(tree["float"])
    if "tensor" in tree:
        place = tree["tensor"]
        if place not in known:
            known[place] = tensor(arrays[place], device)
        return known[place]
    if "array" in tree:
        return np.array(arrays[tree["array"]])
    if "tuple" in tree:
        return tuple(_unpack(item, arrays, device, known) for item in tree["tuple"])
    if "dict" in tree:
        pairs = [
            (_unpack(k, arrays, device, known), _unpack(v, arrays, device, known))
            for k, v in tree["dict"]
        ]
        return dict(pairs)
    kind = _dataclass(tree["type"])
    host = {f.name for f in dataclasses.fields(kind) if f.metadata.get("host")}
    places = {k: torch.device("cpu") if k in host else device for k in tree["fields"]}
    fields = tree["fields"].items()
    return kind(**{k: _unpack(v, arrays, places[k], known) for k, v in fields})


def _dataclass(name: str) -> type[Any]:
    """Return the dataclass called ``module:qualname``; nothing else is ever built."""
    module_name, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module_name)  # a checkpoint makes nobody import code
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(
            f"`checkpoint` must name dataclasses only; got {name}. Do not use it."
        )
    return found


def save(path: Path, value: Any) -> None:
    """Write ``value`` as one ``.npz`` of arrays and a JSON tree, atomically.

    The tree holds the hash of the arrays, and ``sha256`` that of the tree.
    """
    tree, arrays = pack(value)
    sealed = json.dumps({"sealed": tree, "arrays": _hash_of(arrays)}).encode()
    head = [np.frombuffer(text, np.uint8) for text in (sealed, _hash(sealed))]
    with whole_file(path) as file:
        named: dict[str, Any] = {f"a{i}": a for i, a in enumerate(arrays)}
        np.savez(file, tree=head[0], sha256=head[1], **named)


def load(path: Path) -> Any:
    """Read what ``save`` wrote; files without hashes are older ones.

    Raises
    ------
    ValueError — if the file is truncated, changed, or not such a file.
    """
    try:
        if not path.is_file():
            raise ValueError("no file")
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            text = _array(file, "tree").tobytes()
            if len(text) > _LARGEST_TREE:
                raise ValueError(f"a tree of {len(text):,} bytes")
            tree = json.loads(text)
            hashed = "sha256.npy" in names
            arrays = [_array(file, f"a{i}") for i in range(len(names) - 1 - hashed)]
            if hashed and _array(file, "sha256").tobytes() != _hash(text):
                raise ValueError("a tree with another hash")
        if hashed != (isinstance(tree, dict) and "sealed" in tree):
            raise ValueError("one half of its hashes")
        if hashed:
            if tree["arrays"] != _hash_of(arrays):
                raise ValueError("arrays with another hash")
            tree = tree["sealed"]
        return unpack(tree, arrays)
    except DAMAGE as err:
        raise ValueError(
            f"`checkpoint` must be a complete checkpoint file; got {path}: {err}. "
            "Train again with --again."
        ) from err


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return a member's array, after its size was compared with what it claims."""
    member = file.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} compressed, which we never do")
    content = io.BytesIO(file.read(member))
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = read[npy.read_magic(content)](content)
    left = member.file_size - content.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{name} of shape {shape} and type {dtype} in {left} bytes")
    content.seek(0)
    return npy.read_array(content, allow_pickle=False)


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _hash_of(arrays: Arrays) -> str:
    """Return the hash over types, shapes and values of arrays, in order."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
