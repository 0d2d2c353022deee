"""Files as Megatron-LM writes them, made with torch.save: a second implementation for tests.

It follows Megatron's own steps (a model per rank, its optimizer, its flat buffers) and shares no
code with the product.
"""

from __future__ import annotations

import argparse
import enum
import math
import random
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron_model import LEGACY, LOCAL, OLD_LEGACY, ORDER, Shape, cut, full_model, replaced
from torch import Tensor


@dataclass
class Param:
    """A parameter of a rank: its canonical and local name, value, and state."""

    canonical: str
    local: str
    value: Tensor
    shared: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)


def rank_params(
    full: dict[str, Tensor], shape: Shape, rank: int, stage: int, chunk: int
) -> list[Param]:
    """The parameters of one virtual stage on one rank, in Megatron's order."""
    layers = shape.stage_layers()[stage][chunk]
    first = stage == 0 and chunk == 0
    last = stage == shape.pp - 1 and chunk == shape.virtual - 1
    alone = shape.pp * shape.virtual == 1
    found = []

    def add(canonical: str, local: str, *, shared: bool = False) -> None:
        if canonical in full:
            value = cut(canonical, full[canonical], shape, rank).clone()
            found.append(Param(canonical, local, value, shared))

    if first:
        word = "embedding.word_embeddings.weight"
        add(word, word, shared=shape.tied and shape.pp > 1)
        add(*["embedding.position_embeddings.weight"] * 2)
    for number, layer in enumerate(layers):
        for rest in ORDER:
            add(f"decoder.layers.{layer}.{rest}", f"decoder.layers.{number}.{rest}")
    if last:
        add(*["decoder.final_layernorm.weight"] * 2)
        add(*["decoder.final_layernorm.bias"] * 2)
        if not shape.tied:
            add(*["output_layer.weight"] * 2)
        elif not alone:
            add("embedding.word_embeddings.weight", "output_layer.weight", shared=True)
    return found


def model_dict(params: list[Param], style: str) -> dict[str, Any]:
    """The state of a model: style "te", "local", "legacy" or "old-legacy"."""
    if style in ("te", "local"):
        state: dict[str, Any] = {}
        for param in params:
            head, _, rest = param.local.partition("decoder.layers.")
            name = param.local
            if style == "local" and rest:
                number, _, part = rest.partition(".")
                name = f"{head}decoder.layers.{number}.{replaced(part, LOCAL)}"
            state[name] = param.value
            if style == "te" and ".linear_" in name and name.endswith(".weight"):
                blob = torch.frombuffer(bytearray(b"fp8 recipe"), dtype=torch.uint8)
                state[name.removesuffix("weight") + "_extra_state"] = blob
        return state
    old = style == "old-legacy"
    embedding: dict[str, Any] = {}
    encoder: dict[str, Any] = {}
    model: dict[str, Any] = {"language_model": {}}
    for param in params:
        name = param.local
        if name.startswith("embedding."):
            embedding[name.split(".")[1]] = {"weight": param.value}
        elif name.startswith("decoder.final_layernorm."):
            encoder[
                name.replace("decoder.final_layernorm", "final_layernorm" if old else "final_norm")
            ] = param.value
        elif name.startswith("decoder.layers."):
            _, _, number, part = name.split(".", 3)
            part = replaced(part, LEGACY)
            encoder[f"layers.{number}.{replaced(part, OLD_LEGACY) if old else part}"] = param.value
        elif param.shared:
            model["word_embeddings_for_head"] = {"weight": param.value}
        else:
            model["language_model"]["output_layer"] = {"weight": param.value}
    if embedding:
        model["language_model"]["embedding"] = embedding
    model["language_model"]["transformer" if old else "encoder"] = encoder
    return model


def with_state(
    params: list[Param], full: dict[str, dict[str, Tensor]], shape: Shape, rank: int
) -> None:
    """Gives the parameters their parts of full states (kind -> canonical name -> tensor)."""
    for param in params:
        for kind, tensors in full.items():
            param.state[kind] = cut(param.canonical, tensors[param.canonical], shape, rank).clone()


def plain_optimizer(chunks: list[list[Param]], *, half: bool, decoupled: bool) -> dict[str, Any]:
    """What Float16OptimizerWithFloat16Params (or FP32Optimizer) has as its state."""
    groups: dict[Any, list[Param]] = {}
    for params in chunks:
        for param in params:
            no_decay = param.local.endswith(".bias") or param.value.ndim == 1
            own = decoupled and param.local in (
                "embedding.word_embeddings.weight",
                "output_layer.weight",
            )
            groups.setdefault((0.0 if no_decay else 1.0, own), []).append(param)
    state, described, mains, identifier = {}, [], [], 0
    for (wd_mult, own), params in groups.items():
        identifiers = []
        for param in params:
            state[identifier] = {k: param.state[k] for k in ("exp_avg", "exp_avg_sq")}
            identifiers.append(identifier)
            identifier += 1
        described.append(
            {
                "lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.95), "eps": 1e-8,
                "weight_decay": 0.1 * wd_mult, "wd_mult": wd_mult, "lr_mult": 1.0,
                "is_expert_parallel": False, "is_decoupled_lr": own, "max_lr": 1e-3,
                "min_lr": 1e-5, "step": 7, "params": identifiers,
            }
        )  # fmt: skip
        mains.append([param.state["main_param"] for param in params])
    inner = {"state": state, "param_groups": described}
    if not half:
        return inner
    scaler = {"scale": torch.tensor([4096.0]), "growth_tracker": 3, "hysteresis_tracker": 1}
    return {"optimizer": inner, "grad_scaler": scaler, "fp32_from_fp16_params": mains}


def buffers(
    chunks: list[list[Param]], *, dp: int, bucket_sizes: list[int | None]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """The entry of a distributed optimizer in the model file, and the contents of its own file."""
    groups = [
        {k: v for k, v in group.items() if k != "params"}
        for group in plain_optimizer(chunks, half=False, decoupled=False)["param_groups"]
    ]
    stored: dict[Any, Any] = {"buckets_coalesced": True}
    number = 0
    for params, bucket_size in zip(chunks, bucket_sizes, strict=True):
        dtypes = list(dict.fromkeys(param.value.dtype for param in params))
        for dtype in dtypes:
            own = [param for param in params if param.value.dtype == dtype]
            vectors: dict[str, Any] = {}
            for key in ("param", "exp_avg", "exp_avg_sq"):
                kind = "main_param" if key == "param" else key
                vectors[key] = torch.cat(_buckets(own, kind, dp, bucket_size))
            vectors["numel_unpadded"] = vectors["param"].numel()
            stored[number] = {(dtype, torch.float32): vectors}
            number += 1
    return {"optimizer": {"param_groups": groups}}, stored


def _buckets(params: list[Param], kind: str, dp: int, bucket_size: int | None) -> list[Tensor]:
    """Contents of each bucket up to its last parameter, cut from a padded buffer."""

    def up(value: int, unit: int) -> int:
        return math.ceil(value / unit) * unit

    unit = math.lcm(dp, 128)
    buffer = torch.zeros(sum(p.value.numel() + 2 * unit + 64 for p in params) + unit)
    bounds, start, begin, inside = [], 0, 0, 0
    for param in reversed(params):
        start = up(start, 64)
        if param.shared and inside:
            bounds.append((begin, start))
            start = begin = up(start, unit)
            inside = 0
        end = start + param.value.numel()
        buffer[start:end] = param.state[kind].reshape(-1)
        inside += 1
        start = end
        if param.shared or (bucket_size is not None and end - begin >= bucket_size):
            bounds.append((begin, end))
            start = begin = up(end, unit)
            inside = 0
    if inside:
        bounds.append((begin, start))
    return [buffer[a:b].clone() for a, b in bounds]


class ModelType(enum.Enum):
    """Stands for Megatron's class of this name while files are written."""

    encoder_or_decoder = 1


@contextmanager
def megatron_modules() -> Iterator[None]:
    """The module that pickles of Megatron's enumeration name, for as long as torch.save runs."""
    names = ("megatron", "megatron.core", "megatron.core.enums")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[names[-1]].ModelType = ModelType  # type: ignore[attr-defined]
    ModelType.__module__, ModelType.__qualname__ = names[-1], "ModelType"
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def arguments(shape: Shape, **more: Any) -> argparse.Namespace:
    """The args of a run."""
    values: dict[str, Any] = {
        "num_layers": shape.layers,
        "encoder_num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "kv_channels": shape.channels,
        "ffn_hidden_size": shape.ffn,
        "group_query_attention": shape.groups != shape.heads,
        "num_query_groups": shape.groups if shape.groups != shape.heads else 1,
        "seq_length": shape.positions,
        "max_position_embeddings": shape.positions,
        "padded_vocab_size": shape.vocab,
        "make_vocab_size_divisible_by": 8,
        "swiglu": shape.gated,
        "add_bias_linear": shape.bias,
        "add_qkv_bias": False,
        "normalization": "RMSNorm" if shape.rms else "LayerNorm",
        "norm_epsilon": 1e-5,
        "untie_embeddings_and_output_weights": not shape.tied,
        "position_embedding_type": "rope" if shape.rope else "learned_absolute",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": shape.rope,
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": None,
        "bias_gelu_fusion": True,
        "openai_gelu": False,
        "squared_relu": False,
        "apply_layernorm_1p": False,
        "apply_query_key_layer_scaling": False,
        "qk_layernorm": False,
        "apply_residual_connection_post_layernorm": False,
        "tensor_model_parallel_size": shape.tp,
        "pipeline_model_parallel_size": shape.pp,
        "virtual_pipeline_model_parallel_size": shape.virtual if shape.virtual > 1 else None,
        "data_parallel_size": 1,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "num_experts": None,
        "tokenizer_type": "GPT2BPETokenizer",
        "params_dtype": torch.bfloat16,
        "model_type": ModelType.encoder_or_decoder,
        "consumed_train_samples": 700,
        "consumed_valid_samples": 40,
        "skipped_train_samples": 2,
        "iteration": 7,
        "seed": 1234,
        "data_path": ["0.5", "a", "0.5", "b"],
    }
    return argparse.Namespace(**{**values, **more})


SCHEDULER = {
    "max_lr": 1e-3, "lr_warmup_steps": 10, "num_steps": 700, "lr_decay_style": "cosine",
    "lr_decay_steps": 1000, "min_lr": 1e-5, "start_wd": 0.1, "end_wd": 0.1,
    "wd_incr_style": "constant", "wd_incr_steps": 1000,
}  # fmt: skip


def rng_state() -> list[dict[str, Any]]:
    return [
        {
            "random_rng_state": random.getstate(),
            "np_rng_state": np.random.get_state(),
            "torch_rng_state": torch.get_rng_state(),
            "cuda_rng_state": torch.get_rng_state(),
            "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
        }
    ]


@dataclass
class Written:
    """A checkpoint and what is in it."""

    path: Path
    model: dict[str, Tensor]
    states: dict[str, dict[str, Tensor]]


def write_checkpoint(
    directory: Path,
    shape: Shape,
    *,
    style: str = "te",
    dtype: torch.dtype = torch.bfloat16,
    optimizer: str | None = "plain",
    iteration: int = 7,
    release: bool = False,
    version: float = 3.0,
    dp: int = 2,
    bucket_size: int | None = None,
    decoupled: bool = False,
    args: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
    transform: Any = None,
) -> Written:
    """Writes all rank files and the tracker.

    Args:
        directory: What --load would name.
        shape: The model and its cut.
        style: Names: "te", "local", "legacy", "old-legacy".
        dtype: Of parameters.
        optimizer: None, "plain" or "distributed".
        iteration: Iteration.
        release: Write a release instead.
        version: checkpoint_version.
        dp: Processes that share the optimizer.
        bucket_size: Of the first stage's first buffer.
        decoupled: Embedding and output have a learning rate of their own.
        args: Further args.
        scheduler: opt_param_scheduler.
        transform: Called with (canonical name, local tensor) of a rank; what is stored instead.
    """
    mains = full_model(shape, dtype=torch.float32)
    model = {name: tensor.to(dtype) for name, tensor in mains.items()}
    states = {
        "main_param": mains,
        "exp_avg": full_model(shape, dtype=torch.float32, seed=1),
        "exp_avg_sq": full_model(shape, dtype=torch.float32, seed=2),
    }
    path = directory / ("release" if release else f"iter_{iteration:07d}")
    for stage in range(shape.pp):
        for rank in range(shape.tp):
            chunks = []
            for chunk in range(shape.virtual):
                params = rank_params(model, shape, rank, stage, chunk)
                with_state(params, states, shape, rank)
                if transform is not None:
                    for param in params:
                        param.value = transform(param.canonical, param.value)
                chunks.append(params)
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if shape.pp > 1 else "")
            (path / name).mkdir(parents=True)
            extra = {
                "data_parallel_size": dp,
                "use_distributed_optimizer": optimizer == "distributed",
            }
            state: dict[str, Any] = {
                "args": arguments(shape, **extra, **(args or {})),
                "checkpoint_version": version,
                "iteration": iteration,
                "num_floating_point_operations_so_far": 1.5e9,
            }
            dicts = [model_dict(params, style) for params in chunks]
            if shape.virtual == 1:
                state["model"] = dicts[0]
            else:
                state |= {f"model{i}": d for i, d in enumerate(dicts)}
            half = dtype != torch.float32
            with megatron_modules():
                if optimizer == "plain":
                    state["optimizer"] = plain_optimizer(chunks, half=half, decoupled=decoupled)
                elif optimizer == "distributed":
                    sizes = [
                        bucket_size if stage == 0 and c == 0 else None for c in range(shape.virtual)
                    ]
                    state["optimizer"], flat = buffers(chunks, dp=dp, bucket_sizes=sizes)
                    torch.save(flat, path / name / "distrib_optim.pt")
                if optimizer is not None:
                    state["opt_param_scheduler"] = dict(scheduler or SCHEDULER)
                    state["rng_state"] = rng_state()
                torch.save(state, path / name / "model_optim_rng.pt")
    tracker = directory / "latest_checkpointed_iteration.txt"
    tracker.write_text("release" if release else str(iteration))
    return Written(path, model, states)
