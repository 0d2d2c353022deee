"""State of the optimizer in a `torch` checkpoint: moments and fp32 parameters by parameter name.

Without a distributed optimizer the state is numbered, in the order in which the parameters of a
rank come in its groups; with one it lies in flat buffers in a file of its own (`buffers`).

Names here: "exp_avg.<parameter>", "main_param.<parameter>" and so on, as `megacore.optim.state`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.megatron.buffers import find_offsets
from megacore.checkpoint.megatron.chunks import Chunk, StoredModel, current_qkv
from megacore.checkpoint.megatron.names import OUTPUT_WEIGHT, WORD_EMBEDDING
from megacore.checkpoint.megatron.rank_files import Place, RankFiles
from megacore.checkpoint.pieces import Part
from megacore.errors import CheckpointError

MAIN_PARAM = "main_param"
KINDS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
HALF = (torch.float16, torch.bfloat16)
_BUFFER_KINDS = {"param": MAIN_PARAM, "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
_SAMPLE = 512
_WITHOUT = "; pass --no-load-optim to go on without the state of the optimizer"


@dataclass(frozen=True)
class Numbered:
    """A parameter of a rank.

    Attributes:
        chunk: Its stage.
        name: Canonical name.
        tensor: The parameter.
    """

    chunk: Chunk
    name: str
    tensor: Tensor


def has_optimizer(state: Mapping[str, Any]) -> bool:
    """Whether the file of a rank holds the state of an optimizer."""
    return bool(state.get("optimizer"))


def inner_optimizer(state: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The state of the optimizer itself, without what mixed precision puts around it.

    Raises:
        CheckpointError: It is none, or one of several for experts.
    """
    outer = outer_optimizer(state, path)
    inner = outer.get("optimizer", outer.get("optimizer_state_dict", outer))
    if not isinstance(inner, Mapping) or not isinstance(inner.get("param_groups"), list):
        raise CheckpointError(f"{path}: optimizer: expected param_groups{_WITHOUT}")
    return inner


def outer_optimizer(state: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The state of the optimizer as the file has it.

    Raises:
        CheckpointError: It is none, or one of several for experts.
    """
    outer = state.get("optimizer")
    if isinstance(outer, list) and len(outer) == 1:
        outer = outer[0]
    if isinstance(outer, list):
        raise CheckpointError(
            f"{path}: optimizer: {len(outer)} chained optimizers (of experts) are not supported "
            f"yet{_WITHOUT}"
        )
    if not isinstance(outer, Mapping):
        raise CheckpointError(f"{path}: holds no state of an optimizer{_WITHOUT}")
    return outer


def optimizer_parts(
    files: RankFiles,
    states: Mapping[Place, Mapping[str, Any]],
    model: StoredModel,
    buffers: Mapping[Place, Any],
) -> dict[str, list[Part]]:
    """Name of a state -> the parts that make up the full tensor.

    Args:
        files: Files of the checkpoint.
        states: Place -> what its file holds.
        model: The parameters.
        buffers: Place -> what its file of a distributed optimizer holds; empty without one.

    Raises:
        CheckpointError: The state is not that of these parameters; the message names the file.
    """
    found: dict[str, list[Part]] = {}
    for place in sorted(states):
        if buffers:
            path = files.buffer_file(place)
            stored = _from_buffers(path, states[place], model.chunks[place], buffers[place])
        else:
            path = files.model_file(place)
            stored = _from_groups(path, states[place], model.chunks[place])
        for kind, param, tensor in stored:
            if model.is_stored_elsewhere(param.chunk, param.name):
                continue
            if param.name.endswith((".linear_qkv.weight", ".linear_qkv.bias")):
                try:
                    tensor = current_qkv(tensor, states[place], files.tensor_size)
                except ValueError as error:
                    raise CheckpointError(f"{path}: {kind}.{param.name}: {error}") from error
            layout = model.layout(param.chunk, param.name)
            name = f"{kind}.{param.name}"
            found.setdefault(name, []).append(Part(replace(layout, name=name), tensor))
    return found


def num_steps(states: Mapping[str, Any], path: Path) -> int | None:
    """Updates that the optimizer has done, None when the file does not say.

    Args:
        states: What the file of a rank holds.
        path: Its name.
    """
    inner = inner_optimizer(states, path)
    own = inner.get("state")
    counts = [group.get("step") for group in inner["param_groups"]]
    counts += [entry.get("step") for entry in own.values()] if isinstance(own, Mapping) else []
    known = [count for count in counts if isinstance(count, int | float | Tensor)]
    return int(known[0]) if known else None


def group_of(name: str, ndim: int, *, decoupled: bool) -> tuple[bool, bool]:
    """The group of a parameter; groups are numbered in the order in which they first appear.

    Args:
        name: Canonical name.
        ndim: Dimensions of the parameter.
        decoupled: Word embedding and output layer have a learning rate of their own.

    Returns:
        Whether it has no weight decay, and whether it has a learning rate of its own.
    """
    no_decay = name.endswith(".bias") or ndim == 1
    return no_decay, decoupled and name in (WORD_EMBEDDING, OUTPUT_WEIGHT)


def _from_groups(
    path: Path, state: Mapping[str, Any], chunks: Sequence[Chunk]
) -> Iterator[tuple[str, Numbered, Tensor]]:
    """Kind, parameter and tensor of all states that are numbered."""
    outer, inner = outer_optimizer(state, path), inner_optimizer(state, path)
    groups, entries = inner["param_groups"], inner.get("state")
    if not isinstance(entries, Mapping) or not all("params" in group for group in groups):
        raise CheckpointError(
            f"{path}: the optimizer was a distributed one, but distrib_optim.pt is missing"
            f"{_WITHOUT}"
        )
    params = [Numbered(c, name, t) for c in chunks for name, t in c.tensors.items()]
    decoupled = any(group.get("is_decoupled_lr") for group in groups)
    made: dict[tuple[bool, bool], list[Numbered]] = {}
    for param in params:
        made.setdefault(group_of(param.name, param.tensor.ndim, decoupled=decoupled), []).append(
            param
        )
    mains = outer.get("fp32_from_fp16_params", outer.get("fp32_from_fp16", []))
    for number, group in enumerate(groups):
        members = made.get((_has_no_decay(group, groups), bool(group.get("is_decoupled_lr"))), [])
        if len(members) != len(group["params"]):
            raise CheckpointError(
                f"{path}: optimizer group {number}: expected {len(members)} parameters as in the "
                f"model, found {len(group['params'])}{_WITHOUT}"
            )
        for param, identifier in zip(members, group["params"], strict=True):
            entry = entries.get(identifier, {})
            for kind in KINDS:
                if isinstance(entry.get(kind), Tensor):
                    yield kind, param, _shaped(path, kind, param, entry[kind])
        half = [param for param in members if param.tensor.dtype in HALF]
        own = mains[number] if number < len(mains) else []
        if len(own) != len(half):
            raise CheckpointError(
                f"{path}: fp32 parameters of optimizer group {number}: expected {len(half)}, "
                f"found {len(own)}{_WITHOUT}"
            )
        for param, main in zip(half, own, strict=True):
            yield MAIN_PARAM, param, _shaped(path, MAIN_PARAM, param, main)


def _has_no_decay(group: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the parameters of a group are not decayed; old releases say it by the decay alone."""
    if "wd_mult" in group:
        return group["wd_mult"] == 0
    same = len({other.get("weight_decay") for other in groups}) == 1
    # Then the group of biases and norms is the second one.
    return group is groups[-1] and len(groups) > 1 if same else group.get("weight_decay") == 0


def _shaped(path: Path, kind: str, param: Numbered, tensor: Tensor) -> Tensor:
    if tensor.shape != param.tensor.shape:
        raise CheckpointError(
            f"{path}: {kind} of {param.name}: expected shape {list(param.tensor.shape)}, found "
            f"{list(tensor.shape)}{_WITHOUT}"
        )
    return tensor


def _from_buffers(
    path: Path, state: Mapping[str, Any], chunks: Sequence[Chunk], stored: Any
) -> Iterator[tuple[str, Numbered, Tensor]]:
    """Kind, parameter and tensor of all states that lie in flat buffers."""
    if isinstance(stored, list) and len(stored) == 1:
        stored = stored[0]
    if not isinstance(stored, Mapping) or stored.get("buckets_coalesced") is not True:
        raise CheckpointError(
            f"{path}: expected one buffer of all buckets (buckets_coalesced); files of chained "
            f"optimizers and of releases before 2024 are not supported{_WITHOUT}"
        )
    shards = _replicas(state)
    number = 0
    for chunk in chunks:
        by_dtype: dict[torch.dtype, list[Numbered]] = {}
        for name, tensor in chunk.tensors.items():
            by_dtype.setdefault(tensor.dtype, []).append(Numbered(chunk, name, tensor))
        for params in by_dtype.values():
            vectors = _vectors(path, stored, number)
            params = params[::-1]
            offsets = _locate(params, vectors, shards)
            if offsets is None:
                raise CheckpointError(
                    f"{path}: buffer {number}: its fp32 parameters are not those of the model in "
                    f"{path.parent.name}{_WITHOUT}"
                )
            for param, offset in zip(params, offsets, strict=True):
                for key, kind in _BUFFER_KINDS.items():
                    if kind == MAIN_PARAM and param.tensor.dtype not in HALF:
                        continue
                    flat = vectors[key][offset : offset + param.tensor.numel()]
                    yield kind, param, flat.view(param.tensor.shape)
            number += 1


def _replicas(state: Mapping[str, Any]) -> int:
    fields = getattr(state.get("args"), "fields", {})
    sizes = [fields.get(name) for name in ("data_parallel_size", "context_parallel_size")]
    data, context = (size if isinstance(size, int) and size > 0 else 1 for size in sizes)
    return data * context


def _vectors(path: Path, stored: Mapping[Any, Any], number: int) -> dict[str, Tensor]:
    buffer = stored.get(number)
    if isinstance(buffer, Mapping) and len(buffer) == 1:
        (buffer,) = buffer.values()
    if not isinstance(buffer, Mapping):
        raise CheckpointError(f"{path}: buffer {number} of the optimizer is missing{_WITHOUT}")
    vectors = {key: buffer.get(key) for key in _BUFFER_KINDS}
    sizes = {key: v.numel() for key, v in vectors.items() if isinstance(v, Tensor) and v.ndim == 1}
    if len(sizes) < len(vectors) or len(set(sizes.values())) > 1:
        raise CheckpointError(
            f"{path}: buffer {number}: expected {', '.join(_BUFFER_KINDS)} of equal length, found "
            f"{sizes}{_WITHOUT}"
        )
    return {key: v for key, v in vectors.items() if isinstance(v, Tensor)}


def _locate(
    params: Sequence[Numbered], vectors: Mapping[str, Tensor], shards: int
) -> list[int] | None:
    main = vectors["param"]

    def is_here(index: int, offset: int) -> bool:
        """Whether the ends of the parameter are those of the model, at this place."""
        flat = params[index].tensor.reshape(-1)
        here = main[offset : offset + flat.numel()]
        return all(
            torch.equal(here[part].to(flat.dtype), flat[part])
            for part in (slice(0, _SAMPLE), slice(-_SAMPLE, None))
        )

    numels = [param.tensor.numel() for param in params]
    return find_offsets(numels, main.numel(), is_here, shards=shards)
