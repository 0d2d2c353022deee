"""Adapters of a model, from a checkpoint of a run and into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint import layout
from megacore.checkpoint.adapters import holds_adapters
from megacore.checkpoint.convert.publish import Publication
from megacore.checkpoint.open import load_checkpoint
from megacore.checkpoint.save import save_checkpoint
from megacore.durable import replace_file
from megacore.errors import CheckpointError
from megacore.layers.lora import ADAPTER, LINEAR_IN, LINEAR_OUT
from megacore.models.lora import LORA_TARGETS

_MODEL = "model"
_DOWN, _UP = f".{ADAPTER}.{LINEAR_IN}.weight", f".{ADAPTER}.{LINEAR_OUT}.weight"


@dataclass(frozen=True)
class Pair:
    """The two halves of the adapter of one layer.

    Attributes:
        down: A [r, in].
        up: B [out, r].
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """The adapters of a model, all of one rank.

    Attributes:
        rank: r.
        alpha: Their scale is alpha / r.
        dropout: Of their input, in training.
        layers: Canonical name of a linear layer -> its adapter.
        arguments: Settings of the run that trained them; empty for those of another program.
        source: Where they are from, for messages.
    """

    rank: int
    alpha: float
    dropout: float
    layers: Mapping[str, Pair]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def scale(self) -> float:
        """Factor on what they add."""
        return self.alpha / self.rank

    @property
    def targets(self) -> tuple[str, ...]:
        """Kinds of layers that have some, in the order of the model."""
        kinds = {name.rpartition(".")[2] for name in self.layers}
        return tuple(target for target in LORA_TARGETS if target in kinds)


def read_adapters(directory: Path) -> Adapters:
    """The adapters of a checkpoint.

    Args:
        directory: What a run with adapters was told to `--save` to.

    Raises:
        CheckpointError: There is none, or it holds something else.
    """
    checkpoint = load_checkpoint(directory)
    arguments = checkpoint.values.get("args")
    if not isinstance(arguments, dict) or not holds_adapters(arguments):
        raise CheckpointError(f"{checkpoint.path} holds no adapters: it is a whole model")
    tensors = checkpoint.tensors(_MODEL)
    layers = {
        name.removesuffix(_DOWN): Pair(tensor, tensors[name.removesuffix(_DOWN) + _UP])
        for name, tensor in tensors.items()
        if name.endswith(_DOWN)
    }
    return Adapters(
        rank=int(arguments["lora_rank"]),
        alpha=float(arguments["lora_alpha"]),
        dropout=float(arguments["lora_dropout"]),
        layers=layers,
        arguments=arguments,
        source=str(checkpoint.path),
    )


def write_adapters(adapters: Adapters, directory: Path, arguments: Mapping[str, Any]) -> None:
    """A checkpoint of adapters, which a run can start from.

    It is a release: weights alone, at iteration 0.

    Args:
        adapters: What to write.
        directory: Where `--load` will find them.
        arguments: Settings of the base model, and which one it is.

    Raises:
        CheckpointError: It cannot be written.
    """
    own = {
        "lora_rank": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "lora_targets": list(adapters.targets),
    }
    tensors = {}
    for name, pair in adapters.layers.items():
        tensors[name + _DOWN], tensors[name + _UP] = pair.down, pair.up
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with Publication(directory, overwrite=False, num_bytes=size) as scratch:
        save_checkpoint(
            scratch, 0, tensors={_MODEL: tensors}, values={"args": {**arguments, **own}}
        )
        (scratch / layout.iteration_name(0)).rename(scratch / layout.RELEASE)
        replace_file(scratch / layout.TRACKER, layout.RELEASE.encode())


def padded(pair: Pair, rank: int) -> Pair:
    """The same adapter with rows and columns of zeros, which add nothing.

    Args:
        pair: Of at most this rank.
        rank: Rank of the result.
    """
    missing = rank - pair.down.shape[0]
    if missing == 0:
        return pair
    down = torch.cat([pair.down, pair.down.new_zeros(missing, pair.down.shape[1])])
    up = torch.cat([pair.up, pair.up.new_zeros(pair.up.shape[0], missing)], dim=1)
    return Pair(down, up)
