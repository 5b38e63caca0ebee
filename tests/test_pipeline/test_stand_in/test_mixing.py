"""The stand-in for a CUDA device refuses what CUDA refuses, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocks.batched import vmap_logits
from blocks.layout import Layout

ONE = torch.ones(1, dtype=torch.int64)
REFUSED = {
    "sum": lambda here, there: here + there,
    "product": lambda here, there: there @ here.T,
    "list": lambda here, there: torch.cat([there, here]),
    "list of numbers": lambda here, there: torch.stack([there.sum(), here.sum()]),
    "loss": lambda here, there: torch.nn.functional.mse_loss(there, here),
    "in place": lambda here, there: here.add_(there),
    "out": lambda here, there: torch.add(there, 1.0, out=here),
    "number of the device": lambda here, there: here * there.sum(),
    "gather": lambda here, there: there.index_select(0, ONE),
    "index": lambda here, there: here[ONE.to("cuda")],
    "index written to": lambda here, there: there.__setitem__(ONE, here[:1]),
    "set data": lambda here, there: setattr(here, "data", there),
    "view": lambda here, there: there.view(-1)[2:] + here.view(-1)[2:],
    "gradient": lambda here, there: gradient_of(there) + here,
    "numpy": lambda here, there: there.numpy(),
    "array": lambda here, there: np.asarray(there),
}
ALLOWED = {
    "numbers of the host": lambda here, there: there * here.sum() + 2.0,
    "copy": lambda here, there: there.copy_(here),
    "copy back": lambda here, there: here.copy_(there),
    "to": lambda here, there: there + here.to("cuda", torch.float64),
    "like": lambda here, there: there @ here.to(there).T,
    "back": lambda here, there: there.cpu() + there.to("cpu") + here,
    "index": lambda here, there: there[ONE] + there[ONE.to("cuda")],
    "slice written to": lambda here, there: there.__setitem__(slice(0, 1), here[:1]),
    "index set": lambda here, there: there.__setitem__(ONE, 0.0),
    "new": lambda here, there: there + torch.zeros(2, 3, device="cuda"),
    "new like": lambda here, there: there + torch.zeros_like(there) + there.new_ones(3),
    "new here": lambda here, there: here + torch.zeros_like(there, device="cpu"),
    "host memory": lambda here, there: there.cpu().numpy() + there.numpy(force=True),
    "numbers": lambda here, there: here * there.sum().item() * float(there[0, 0]),
}


def gradient_of(point: torch.Tensor) -> torch.Tensor:
    own = point.clone().requires_grad_()
    return torch.autograd.grad(own.square().sum(), own)[0]


@pytest.fixture
def both(stand_in_cuda):
    """Return a matrix on the host and one on the device."""
    return torch.ones(2, 3), torch.ones(2, 3, device="cuda")


@pytest.mark.parametrize("name", list(REFUSED))
def test_stand_in__refuses_two_devices_in_one_operation(
    name, both, stand_in_cuda
) -> None:
    with pytest.raises(stand_in_cuda, match=r"\[\(.*\)\] on the device"):
        REFUSED[name](*both)


@pytest.mark.parametrize("name", list(ALLOWED))
def test_stand_in__allows_what_cuda_allows(name, both) -> None:
    ALLOWED[name](*both)
    assert [t.device.type for t in both] == ["cpu", "cuda"]


def test_stand_in__names_the_operation_and_its_shapes(both, stand_in_cuda) -> None:
    here, there = both
    with pytest.raises(stand_in_cuda) as error:
        torch.cat([there, here[:1]])
    expected = "torch.cat: [(2, 3)] on the device, [(1, 3)] on the host"
    assert str(error.value) == expected


def test_stand_in__sees_what_is_inside_vmap(stand_in_cuda) -> None:
    module = torch.nn.Linear(3, 2)
    layout = Layout.from_module(module)
    thetas, x = torch.zeros(4, 8, device="cuda"), torch.zeros(5, 3)
    with pytest.raises(stand_in_cuda, match="linear"):
        vmap_logits(module, layout, thetas, x)
    found = vmap_logits(module.to("cuda"), layout, thetas, x.to("cuda"))
    assert found.device.type == "cuda"


def test_stand_in__leaves_nothing_behind(stand_in) -> None:
    def state():
        names = ("is_available", "device", "manual_seed")
        found = [getattr(torch.cuda, name) for name in names]
        return [*found, torch.random.fork_rng, torch.nn.Module.to]

    before, kept = state(), []

    def fail() -> None:
        with stand_in():
            assert state() != before
            kept.append(torch.ones(2, device="cuda"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state() == before
    assert kept[0].device.type == "cpu"
    assert (kept[0] + torch.ones(2)).tolist() == [2.0, 2.0]
