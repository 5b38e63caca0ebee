"""A stand-in for a CUDA device: computed on the CPU, and as strict as CUDA is.

Tensors that were put on the device carry a mark, and what is computed from them carries
it too. Marked tensors say that they are on ``cuda``; an operation that CUDA refuses
because its tensors are on two devices is an error.

Not seen: what CUDA's own kernels compute, their order and their memory; other threads
and processes; tensors inside a composite function of torch; numbers of 0 dimensions,
which CUDA takes from the host in most operations but not in all.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from blocks import batched, signs
from pipeline import batches, context, device

DEVICE_OF = Tensor.device.__get__
AS_ARRAY = (Tensor.numpy, Tensor.__array__)
LISTS = (torch.cat, torch.stack)  # no exception for numbers on the host


class DeviceMixed(AssertionError):
    """CUDA would refuse this operation."""


def is_cuda(place: str | torch.device) -> bool:
    return torch.device(place).type == "cuda"


def on_device(tensor: Tensor) -> bool:
    return getattr(tensor, "is_on_stand_in", False)


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of some nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def marked(value: Any, there: bool = True) -> Any:
    """The same tensors, on the device or not."""
    for tensor in tensors(value):
        tensor.is_on_stand_in = there
    return value


def moved(tensor: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """``Tensor.to``: a copy if it goes to the other device."""
    there, rest = on_device(tensor), []
    for wanted in (*args, device):
        if isinstance(wanted, Tensor):
            there = on_device(wanted)
            rest.append(wanted.dtype)
        elif isinstance(wanted, (str, torch.device)):
            there = is_cuda(wanted)
        elif wanted is not None:
            rest.append(wanted)
    if there != on_device(tensor):
        kwargs["copy"] = True
    result = tensor.to("cpu", *rest, **kwargs)
    return result if result is tensor else marked(result, there)


def tied(func: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Tensors of an operation that have to be on one device."""
    if func is Tensor.copy_:
        return
    if func not in (Tensor.__getitem__, Tensor.__setitem__):
        yield from tensors((args, kwargs))
        return
    target, index, *value = args
    places = [t for t in tensors(index) if t.dim()]
    yield target
    if places:  # else a part is written over, as by ``copy_``
        yield from tensors(value)
    if not on_device(target):  # a device takes indices from the host
        yield from places


def check(func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Refuse what CUDA refuses."""
    found = list(tied(func, args, kwargs))
    there = [tuple(t.shape) for t in found if on_device(t)]
    here = [
        tuple(t.shape) for t in found if not on_device(t) and (t.dim() or func in LISTS)
    ]
    if there and (here or (func in AS_ARRAY and not kwargs.get("force"))):
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        raise DeviceMixed(f"{name}: {there} on the device, {here} on the host")


class StandIn(TorchFunctionMode):
    """Sees every operation of the thread that entered it."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        if func == DEVICE_OF and on_device(args[0]):
            return torch.device("cuda")
        if func in (Tensor.to, Tensor.cpu):
            return moved(*args, *(["cpu"] if func is Tensor.cpu else []), **kwargs)
        check(func, args, kwargs)
        there = any(map(on_device, tensors((args, kwargs))))
        if kwargs.get("device") is not None:
            there = is_cuda(kwargs["device"])
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        in_place = bool(args) and result is args[0]
        return marked(result) if there and not in_place else result


def vmap(function: Callable[..., Tensor], in_dims: Any) -> Callable[..., Tensor]:
    """``torch.func.vmap``; slices are on the device of what they are cut from."""

    def run(*args: Tensor) -> Tensor:
        def sliced(*parts: Tensor) -> Tensor:
            pairs = zip(parts, args, strict=True)
            return function(*(marked(p, on_device(whole)) for p, whole in pairs))

        result = torch.func.vmap(sliced, in_dims)(*args)
        return marked(result, any(map(on_device, args)))

    return run


def module_to(module: nn.Module, place: str | torch.device) -> nn.Module:
    """``Module.to``: its parameters and buffers stay the same objects."""
    marked([*module.parameters(), *module.buffers()], is_cuda(place))
    return module


def prepare(config: Any) -> None:
    """``device.prepare`` without CUDA's switches, which the process would keep."""
    device.prepare(config.model_copy(update={"device": "cpu"}))


@contextlib.contextmanager
def installed() -> Iterator[type[DeviceMixed]]:
    """The stand-in, until the end of the block; caches of tensors start empty."""
    fork_rng = torch.random.fork_rng
    with pytest.MonkeyPatch.context() as patch, StandIn():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device", contextlib.nullcontext)
        patch.setattr(torch.cuda, "manual_seed", lambda seed: None)
        patch.setattr(torch.random, "fork_rng", lambda devices: fork_rng(devices=[]))
        patch.setattr(nn.Module, "to", module_to)
        patch.setattr(batched, "vmap", vmap)
        patch.setattr(context, "prepare", prepare)
        patch.setattr(context, "_CACHE", {})
        patch.setattr(batches, "_IMAGES", OrderedDict())
        patch.setattr(signs, "_table_on", signs._table_on.__wrapped__)
        yield DeviceMixed


@pytest.fixture(scope="session")
def stand_in():
    """Return the context manager that installs the stand-in."""
    return installed


@pytest.fixture
def stand_in_cuda():
    """Install the stand-in for a whole test; gives the error that it raises."""
    with installed() as error:
        yield error
