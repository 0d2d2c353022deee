"""Counters, schedules, loss scale and random states of a `torch` checkpoint, as values of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megacore.checkpoint.megatron.optimizer import num_steps, outer_optimizer
from megacore.errors import CheckpointError

_COUNTERS = ("consumed_train_samples", "consumed_valid_samples", "skipped_train_samples")
_SCHEDULE = (
    "max_lr",
    "min_lr",
    "lr_warmup_steps",
    "lr_decay_steps",
    "lr_decay_style",
    "start_wd",
    "end_wd",
    "wd_incr_steps",
    "wd_incr_style",
    "num_steps",
)
# What old releases called a value of the schedule.
_OLD_SCHEDULE = {
    "start_lr": "max_lr",
    "warmup_iter": "lr_warmup_steps",
    "warmup_steps": "lr_warmup_steps",
    "end_iter": "lr_decay_steps",
    "decay_steps": "lr_decay_steps",
    "decay_style": "lr_decay_style",
    "num_iters": "num_steps",
}
_TRACKER = "model-parallel-rng"
_TRACKER_CPU = "model-parallel-rng-cpu"


def counters(state: Mapping[str, Any], args: Mapping[str, Any], iteration: int) -> dict[str, Any]:
    """How far the run had come (`training.run_state.RunState`).

    Args:
        state: What the file of a rank holds.
        args: Attributes of its namespace.
        iteration: Iterations that were completed.
    """
    found: dict[str, Any] = {"iteration": iteration}
    found |= {name: _count(args.get(name)) for name in _COUNTERS}
    operations = state.get("num_floating_point_operations_so_far", 0.0)
    found["floating_point_operations"] = float(operations) if _is_number(operations) else 0.0
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> int:
    return int(value) if _is_number(value) and value >= 0 else 0


def schedule(state: Mapping[str, Any]) -> dict[str, Any]:
    """Constants and position of the schedules, as far as the file says."""
    stored = state.get("opt_param_scheduler", state.get("lr_scheduler"))
    if not isinstance(stored, Mapping):
        return {}
    named = {_OLD_SCHEDULE.get(name, name): value for name, value in stored.items()}
    return {name: named[name] for name in _SCHEDULE if name in named}


def stored_schedule(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schedule as Megatron-LM stores it, and what it does not know of it.

    Args:
        values: As `optim.schedule.ParamScheduler.state_values` gives.
    """
    known = {name: values[name] for name in _SCHEDULE}
    return known, {name: value for name, value in values.items() if name not in known}


def optimizer_values(state: Mapping[str, Any], path: Path, iteration: int) -> dict[str, Any]:
    """Step count and loss scale of the optimizer (`optim.Optimizer.load_values`).

    Args:
        state: What the file of a rank holds.
        path: Its name.
        iteration: Taken for the steps where the file does not count them.
    """
    steps = num_steps(state, path)
    scaler = outer_optimizer(state, path).get("grad_scaler")
    scale: dict[str, Any] = {}
    if isinstance(scaler, Mapping):
        for name in ("scale", "growth_tracker", "hysteresis_tracker"):
            value = scaler.get(name)
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            if _is_number(value):
                scale[name] = value
    return {"step": iteration if steps is None else steps, "loss_scale": scale}


def stored_scale(values: Mapping[str, Any]) -> dict[str, Any]:
    """The loss scale as Megatron-LM stores it: the scale as a tensor, counters as numbers."""
    return {
        name: torch.tensor([value], dtype=torch.float32) if name == "scale" else value
        for name, value in values.items()
    }


def stored_rng(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """Random states of one process as Megatron-LM stores them.

    Args:
        tensors: Names and states as `checkpoint.rng.gather_rng` gives, those of the stream of the
            tensor-parallel process with "tensor_parallel." in front.
        values: What it gives besides.
    """
    python, numpy = values["python"], values["numpy"]
    trackers = {}
    if "tensor_parallel.cpu" in tensors:
        trackers[_TRACKER_CPU] = tensors["tensor_parallel.cpu"]
        trackers[_TRACKER] = tensors.get("tensor_parallel.cuda", tensors["tensor_parallel.cpu"])
    cuda = tensors.get(_cuda_name(), torch.empty(0, dtype=torch.uint8))
    return {
        "random_rng_state": (
            python["version"],
            tuple(tensors["python"].tolist()),
            python["gauss_next"],
        ),
        "np_rng_state": (
            numpy["kind"],
            tensors["numpy"].numpy().astype(np.uint32),
            numpy["position"],
            numpy["has_gauss"],
            numpy["cached_gaussian"],
        ),
        "torch_rng_state": tensors["torch_cpu"],
        "cuda_rng_state": cuda,
        "rng_tracker_states": trackers,
    }


def rng_parts(stored: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The opposite of `stored_rng`.

    Args:
        stored: An entry of rng_state.
        path: The file, for messages.

    Raises:
        CheckpointError: It is not what such an entry must be.
    """
    try:
        version, internal, gauss = stored["random_rng_state"]
        kind, keys, position, has_gauss, cached = stored["np_rng_state"]
        tensors = {
            "python": torch.tensor(internal, dtype=torch.int64),
            "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "torch_cpu": stored["torch_rng_state"],
        }
        if stored["cuda_rng_state"].numel():
            tensors[_cuda_name()] = stored["cuda_rng_state"]
        trackers = stored["rng_tracker_states"]
        if _TRACKER_CPU in trackers:
            tensors["tensor_parallel.cpu"] = trackers[_TRACKER_CPU]
            if trackers[_TRACKER].numel() != trackers[_TRACKER_CPU].numel():
                tensors["tensor_parallel.cuda"] = trackers[_TRACKER]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: rng_state: {type(error).__name__} {error}; pass --no-load-rng to go on "
            "without it"
        ) from error
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


def _cuda_name() -> str:
    """Name of the state of the GPU that this process uses."""
    return f"torch_cuda.{torch.cuda.current_device() if torch.cuda.is_available() else 0}"
