"""Seeds of a run, and deterministic algorithms."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

PIPELINE_RANK_STRIDE = 100
DATA_RANK_STRIDE = 10
# Far from the multiples of the others, so that no two processes share a seed.
CONTEXT_RANK_STRIDE = 1_000_003


def rank_seed(
    seed: int,
    *,
    pipeline_rank: int = 0,
    data_parallel_rank: int = 0,
    context_parallel_rank: int = 0,
    differ_by_data: bool = False,
) -> int:
    """The seed of a rank: base + 100 * pipeline rank (+ 10 * data-parallel rank).

    The processes that share a sequence have different tokens of it, so they draw differently too.
    """
    result = seed + PIPELINE_RANK_STRIDE * pipeline_rank
    result += CONTEXT_RANK_STRIDE * context_parallel_rank
    return result + DATA_RANK_STRIDE * data_parallel_rank if differ_by_data else result


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def torch_rng_preserved(device: torch.device) -> Iterator[None]:
    """Leave PyTorch's generators as they were before the block."""
    state = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    """With `on`, PyTorch refuses every operation that has no deterministic algorithm.

    cuBLAS is only reproducible with a fixed workspace, which it reads from the environment when
    the first handle is made, so the variable is set here (a value of the user's stays).
    """
    if not on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
