"""How a process computes for a run: threads, and what makes CUDA repeat itself."""

from __future__ import annotations

import os
import socket

import torch

from pipeline.config import RunConfig

# Decides which products cuBLAS chooses; read when CUDA starts in a process.
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def prepare(config: RunConfig) -> None:
    """Set torch's thread count, and deterministic full-precision kernels on CUDA.

    Raises
    ------
    ValueError — if torch's default dtype is another than float32.
    RuntimeError — if the device is CUDA and this process sees no GPU.
    """
    if torch.get_default_dtype() is not torch.float32:
        raise ValueError(
            "torch's default dtype must be float32; got "
            f"{torch.get_default_dtype()}. Call `torch.set_default_dtype` only where "
            "no run is trained or evaluated."
        )
    if torch.get_num_threads() != config.threads:
        torch.set_num_threads(config.threads)
    if config.device != "cuda":
        return
    if not torch.cuda.is_available():
        raise RuntimeError(
            "`device` must be available where a run is started and on its workers; got "
            f"cuda, and torch sees no GPU on {socket.gethostname()}. Use a machine "
            "with one and a CUDA build of torch, or --device cpu."
        )
    for name, value in CUBLAS.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False
