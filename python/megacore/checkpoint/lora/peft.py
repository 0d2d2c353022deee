"""Adapters in the directory layout of Hugging Face PEFT, both ways.

`adapter_config.json` beside `adapter_model.safetensors`, whose names are those of the family's
modules behind "base_model.model.". A fused layer of ours is several modules of most families: each
gets the whole A, and its rows of B. The other way, modules that were trained apart have different
A: these are stacked, with each module's columns of B in its own rows, so that nothing changes.

Source: PEFT's documentation, "PEFT checkpoint format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.rules import Rule
from megacore.checkpoint.convert.publish import Publication
from megacore.checkpoint.lora.adapter import Adapters, Pair, padded
from megacore.durable import write_file
from megacore.errors import CheckpointError
from megacore.models.config import ModelConfig
from megacore.models.lora import LORA_TARGETS

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HALVES = ("lora_A", "lora_B")


def is_peft(directory: Path) -> bool:
    """Whether a directory is one of PEFT."""
    return (directory / CONFIG).is_file()


def _rules(family: Family, config: ModelConfig) -> dict[str, Rule]:
    """Canonical layer -> rule for the rows of its output, in the order of the model.

    PEFT stores both halves as those of an ordinary linear layer, also where the weight itself is
    stored the other way round.
    """
    found = {}
    for name, rule in family.rules(config).items():
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer.rpartition(".")[2] in LORA_TARGETS:
            found[layer] = replace(rule, row=replace(rule.row, transposed=False))
    return found


def _module(their_weight: str) -> str:
    return their_weight.removesuffix(".weight")


def export_peft(
    adapters: Adapters, directory: Path, *, family: Family, config: ModelConfig, base: str
) -> None:
    """Writes a directory that `PeftModel.from_pretrained` reads.

    Args:
        adapters: What to write.
        directory: To be made.
        family: Family of the base model.
        config: Its architecture, resolved.
        base: What `base_model_name_or_path` says.

    Raises:
        CheckpointError: It cannot be written, or is there already.
    """
    rules = _rules(family, config)
    tensors: dict[str, Tensor] = {}
    modules = []
    for layer, pair in adapters.layers.items():
        rule = rules[layer]
        for theirs, up in zip(rule.theirs, rule.split(pair.up), strict=True):
            module = _module(theirs)
            modules.append(module)
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = pair.down.contiguous().clone()
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = up.contiguous().clone()
    transposed = any(row.transposed for row in family.table)
    every = [_module(theirs) for rule in rules.values() for theirs in rule.theirs]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": _number(adapters.alpha),
        "lora_dropout": adapters.dropout,
        "target_modules": _short_names(modules, every),
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with Publication(directory, overwrite=False, num_bytes=size) as scratch:
        write_file(scratch / CONFIG, json.dumps(settings, indent=2).encode() + b"\n")
        write_file(scratch / TENSORS, save(tensors, metadata={"format": "pt"}))


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _short_names(modules: Sequence[str], every: Sequence[str]) -> list[str]:
    """The shortest ends of names that pick these modules and no others."""
    chosen = set(modules)
    found = set()
    for module in modules:
        words = module.split(".")
        for count in range(1, len(words) + 1):
            end = ".".join(words[-count:])
            if all(one in chosen for one in every if f".{one}".endswith(f".{end}")):
                found.add(end)
                break
    return sorted(found)


@dataclass(frozen=True)
class _Part:
    """The adapter of one of their modules, scaled by `scale`."""

    down: Tensor
    up: Tensor
    scale: float


def import_peft(directory: Path, *, family: Family, config: ModelConfig) -> Adapters:
    """The adapters of a PEFT directory.

    Args:
        directory: With adapter_config.json and adapter_model.safetensors.
        family: Family of the base model.
        config: Its architecture, resolved.

    Raises:
        CheckpointError: A file cannot be read, or there is something that cannot be expressed; all
            of it is listed.
    """
    settings = _settings(directory / CONFIG)
    tensors = _tensors(directory / TENSORS)
    layers: dict[str, list[tuple[int, _Part]]] = {}
    faults = []
    for layer, rule in _rules(family, config).items():
        for index, theirs in enumerate(rule.theirs):
            module = f"{_PREFIX}{_module(theirs)}"
            halves = [tensors.pop(f"{module}.{half}.weight", None) for half in _HALVES]
            down, up = halves
            if down is None and up is None:
                continue
            if down is None or up is None or down.shape[0] != up.shape[1]:
                faults.append(f"{module}: its two halves do not belong together")
                continue
            scale = _scale(settings, module.removeprefix(_PREFIX), down.shape[0])
            layers.setdefault(layer, []).append((index, _Part(down, up, scale)))
    faults += [f"{name}: the model has no such layer" for name in tensors]
    if not layers and not faults:
        faults.append("there is no adapter in it")
    if faults:
        raise CheckpointError(
            f"{directory}: the adapters cannot be expressed for a {family.name}:\n  "
            + "\n  ".join(faults[:100])
        )
    rules = _rules(family, config)
    scale = next(iter(layers.values()))[0][1].scale
    joined = {layer: _joined(rules[layer], parts, scale) for layer, parts in layers.items()}
    rank = max(pair.down.shape[0] for pair in joined.values())
    return Adapters(
        rank=rank,
        alpha=scale * rank,
        dropout=float(settings.get("lora_dropout", 0.0)),
        layers={layer: padded(pair, rank) for layer, pair in joined.items()},
        source=str(directory),
    )


def _joined(rule: Rule, parts: Sequence[tuple[int, _Part]], scale: float) -> Pair:
    """One adapter for a fused layer, from those of some of its modules."""
    scaled = {i: p.up if p.scale == scale else p.up * (p.scale / scale) for i, p in parts}
    downs = [part.down for _, part in parts]
    shapes = rule.their_shapes(_fused_shape(rule, dict(parts)))
    if all(torch.equal(down, downs[0]) for down in downs[1:]):
        rank = downs[0].shape[0]
        ups = [
            scaled[i] if i in scaled else downs[0].new_zeros(shape[0], rank)
            for i, shape in enumerate(shapes)
        ]
        return Pair(downs[0], rule.join(ups).contiguous())
    down = torch.cat(downs)
    ups = [down.new_zeros(shape[0], down.shape[0]) for shape in shapes]
    first = 0
    for index, part in parts:
        last = first + part.down.shape[0]
        ups[index][:, first:last] = scaled[index]
        first = last
    return Pair(down, rule.join(ups).contiguous())


def _fused_shape(rule: Rule, parts: Mapping[int, _Part]) -> tuple[int, int]:
    spec, kind = rule.spec, rule.row.kind
    rows = (spec.num_heads + 2 * spec.num_groups) * spec.head_dim
    some = next(iter(parts.values())).up.shape[0]
    if kind == "halves":
        rows = 2 * some
    elif kind == "same":
        rows = some
    return rows, 1


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(_of_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"]))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_pattern(patterns: Any, module: str, default: Any) -> Any:
    """A value that holds for modules whose name ends so; PEFT's regular expressions are refused."""
    for end, value in (patterns or {}).items():
        if module == end or module.endswith(f".{end}"):
            return value
    return default


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    faults = list(_unknown(settings))
    if faults:
        raise CheckpointError(f"{path}: cannot be expressed here:\n  " + "\n  ".join(faults))
    return settings


def _unknown(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("peft_type") != "LORA":
        yield f"peft_type {settings.get('peft_type')!r}, only LORA can be read"
    if not isinstance(settings.get("lora_alpha"), int | float):
        yield f"lora_alpha must be a number, found {settings.get('lora_alpha')!r}"
    if settings.get("bias", "none") != "none":
        yield f"bias {settings['bias']!r}: biases are not trained"
    for name in (
        "use_dora",
        "modules_to_save",
        "layer_replication",
        "megatron_config",
        "lora_bias",
        "trainable_token_indices",
        "target_parameters",
    ):
        if settings.get(name):
            yield f"{name} {settings[name]!r}"
    for end in settings.get("alpha_pattern") or {}:
        if not all(word.isidentifier() or word.isdigit() for word in end.split(".")):
            yield f"alpha_pattern {end!r} is a regular expression, only names can be read"


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not there; adapters saved as a pickle (adapter_model.bin) are not read, save "
            "them with safe_serialization=True"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
