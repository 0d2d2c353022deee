"""States of all random number generators, as tensors and JSON values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megacore.errors import CheckpointError

_PYTHON, _NUMPY, _CPU, _CUDA, _NAMED = "python", "numpy", "torch_cpu", "torch_cuda.", "generator."


def gather_rng(
    generators: Mapping[str, torch.Generator] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of Python's, NumPy's and torch's generators, and of further named ones.

    Args:
        generators: Name -> generator that the caller uses besides the default ones.

    Returns:
        Tensors and JSON values, for the group "rng" and for a place in the values.
    """
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        _PYTHON: torch.tensor(internal, dtype=torch.int64),
        _NUMPY: torch.from_numpy(np.asarray(keys).astype(np.int64)),
        _CPU: torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"{_CUDA}{index}"] = state
    for name, generator in (generators or {}).items():
        tensors[f"{_NAMED}{name}"] = generator.get_state()
    values = {
        "python": {"version": version, "gauss_next": gauss},
        "numpy": {
            "kind": kind,
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached),
        },
    }
    return tensors, values


def restore_rng(
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    generators: Mapping[str, torch.Generator] | None = None,
) -> None:
    """Puts every generator into a stored state.

    CUDA states are restored for the devices that are there; a checkpoint from a machine without
    CUDA leaves them as they are.

    Args:
        tensors: As `gather_rng` gave.
        values: As `gather_rng` gave.
        generators: Same names as when they were gathered.

    Raises:
        CheckpointError: A state is missing or unusable; the message says which.
    """
    wanted = (_PYTHON, _NUMPY, _CPU, *(f"{_NAMED}{name}" for name in generators or {}))
    missing = [name for name in wanted if name not in tensors]
    missing += [name for name in (_PYTHON, _NUMPY) if not isinstance(values.get(name), Mapping)]
    if missing:
        raise CheckpointError(f"random number state lacks {', '.join(missing)}")
    python, legacy = values[_PYTHON], values[_NUMPY]
    try:
        random.setstate((python["version"], tuple(tensors[_PYTHON].tolist()), python["gauss_next"]))
        np.random.set_state(
            (
                legacy["kind"],
                tensors[_NUMPY].numpy().astype(np.uint32),
                legacy["position"],
                legacy["has_gauss"],
                legacy["cached_gaussian"],
            )
        )
        torch.set_rng_state(tensors[_CPU])
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if f"{_CUDA}{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"{_CUDA}{index}"], index)
        for name, generator in (generators or {}).items():
            generator.set_state(tensors[f"{_NAMED}{name}"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"random number state cannot be restored: {error}") from error
