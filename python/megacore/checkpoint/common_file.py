"""common.pt: what Megatron-Core keeps beside the tensors, made of our values and read back.

Our own values are in it too, as the text of one JSON object: Megatron-Core ignores them, and
nothing about a run of ours is lost in the names of another program.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megacore.checkpoint.megatron.arguments import namespace, settings_of_args, stored_fields
from megacore.checkpoint.megatron.run_values import (
    counters,
    optimizer_values,
    schedule,
    stored_scale,
    stored_schedule,
)
from megacore.errors import CheckpointError

OWN = "megacore"
_VERSION = 3.0
_SHARDING = "fully_sharded_model_space"
_SAMPLES = ("consumed_train_samples", "consumed_valid_samples", "skipped_train_samples")


def common_of(iteration: int, state: str) -> dict[str, Any]:
    """The content of common.pt.

    Args:
        iteration: Completed iterations.
        state: The values of a checkpoint, as the text of a JSON object.
    """
    values = json.loads(state)
    common: dict[str, Any] = {"checkpoint_version": _VERSION, "iteration": iteration, OWN: state}
    arguments, done = _mapping(values, "args"), _mapping(values, "counters")
    if arguments:
        fields = {**arguments, "iteration": iteration, "params_dtype": params_dtype(arguments)}
        fields |= {name: done[name] for name in _SAMPLES if name in done}
        common["args"] = namespace(fields)
    if "floating_point_operations" in done:
        common["num_floating_point_operations_so_far"] = done["floating_point_operations"]
    constants = _mapping(values, "scheduler")
    if constants:
        common["opt_param_scheduler"] = stored_schedule(constants)[0]
    optimizer = _mapping(values, "optimizer")
    if optimizer:
        common["optimizer"] = _optimizer(optimizer, arguments, constants)
    return common


def params_dtype(arguments: Mapping[str, Any]) -> torch.dtype:
    """Dtype of the parameters of a run with these settings."""
    if arguments.get("bf16"):
        return torch.bfloat16
    return torch.float16 if arguments.get("fp16") else torch.float32


def _optimizer(
    own: Mapping[str, Any], arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> dict[str, Any]:
    """Groups of parameters with and without weight decay, as Megatron's optimizer has them."""
    groups = [
        {
            "wd_mult": decay,
            "lr_mult": 1.0,
            "is_expert_parallel": False,
            "is_decoupled_lr": False,
            "max_lr": constants.get("max_lr"),
            "min_lr": constants.get("min_lr"),
            "lr": constants.get("max_lr"),
            "weight_decay": decay * float(constants.get("end_wd") or 0.0),
            "betas": (arguments.get("adam_beta1"), arguments.get("adam_beta2")),
            "eps": arguments.get("adam_eps"),
            "step": own.get("step"),
        }
        for decay in (1.0, 0.0)
    ]
    state: dict[str, Any] = {"optimizer": {"param_groups": groups}}
    scale = _mapping(own, "loss_scale")
    if "growth_tracker" in scale:
        state["grad_scaler"] = stored_scale(scale)
    return {**state, "param_state_sharding_type": _SHARDING}


def values_of(common: Mapping[str, Any], iteration: int, file: Path) -> dict[str, Any]:
    """Our values from common.pt: our own, or what can be made of Megatron's.

    Args:
        common: Its content.
        iteration: Completed iterations.
        file: Where it is, for messages.

    Raises:
        CheckpointError: They are not what they must be.
    """
    if OWN in common:
        try:
            values = json.loads(common[OWN])
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: the values in it are damaged: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
        return values
    fields = stored_fields(common)
    values = {"counters": counters(common, fields, iteration), "scheduler": schedule(common)}
    if fields:
        values["args"] = settings_of_args(fields, is_legacy=False, is_own=False)
    if "optimizer" in common:
        values["optimizer"] = optimizer_values(common, file, iteration)
    return values


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}
