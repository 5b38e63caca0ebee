"""What a process sets before it computes, and devices that it does not have."""

from __future__ import annotations

import os

import pytest
import torch

from pipeline.device import prepare
from pipeline.train import train


def test_train__on_cuda_without_a_gpu_says_so_and_leaves_nothing(
    tiny, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees no GPU on"):
        train(tiny(device="cuda"), results=tmp_path)
    assert not list(tmp_path.rglob("*.zarr"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_prepare__asks_cuda_to_repeat_itself_in_full_precision(
    tiny, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # undone by pytest
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    matmul, deterministic = torch.backends.cuda.matmul, torch.utils.deterministic
    try:
        prepare(tiny(device="cuda"))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert not deterministic.fill_uninitialized_memory
        assert not matmul.allow_tf32
        assert not matmul.allow_bf16_reduced_precision_reduction
    finally:
        torch.use_deterministic_algorithms(False)
        deterministic.fill_uninitialized_memory = True
        matmul.allow_bf16_reduced_precision_reduction = True
