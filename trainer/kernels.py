"""Which of several kernels PyTorch takes for the same operation: the fastest one, or one that adds in a fixed order."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fixed_order(wanted: bool) -> Iterator[None]:
    """Take kernels only that give the same bits every time (`train.deterministic`).

    An operation that has none raises RuntimeError with its name. `models.output.upsample` has a form of its own for
    this mode.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def fastest_convolutions(sizes_stay: bool) -> Iterator[None]:
    """Let cuDNN try all its kernels where images keep their size: for each new size it tries them anew.

    What is fastest differs from run to run, so none is tried within `fixed_order`.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = sizes_stay and not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
