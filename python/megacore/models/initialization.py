"""Initial weights that depend on the seed and a parameter's name only.

Each parameter is drawn from its own counter-based stream, in row-major order of the full tensor.
So the weights are the same whatever the depth of the rest, the device, the dtype (up to rounding)
and the layout a parallel run slices them into; and the first rows of an embedding do not depend
on how far the vocabulary is padded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from megacore.layers.lora import LINEAR_OUT, is_adapter_name
from megacore.models.config import ModelConfig

# Drawn and copied in pieces, so that no full float64 copy of a large tensor exists.
_PIECE = 1 << 22


class Block(Protocol):
    """A block of a full tensor, and where it lies in the local one."""

    @property
    def full_offset(self) -> tuple[int, ...]:
        """First index in the full tensor, per dimension."""

    @property
    def local_offset(self) -> tuple[int, ...]:
        """First index in the local tensor, per dimension."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size, per dimension."""


class Cut(Protocol):
    """How a local parameter is cut from a full one."""

    @property
    def name(self) -> str:
        """Name of the full parameter."""

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def shard_dim(self) -> int | None:
        """The only dimension that is cut; None for a whole parameter."""

    def boxes(self) -> Sequence[Block]:
        """The blocks that the local tensor is made of."""


def init_weights(
    model: nn.Module,
    config: ModelConfig,
    *,
    seed: int,
    cuts: Mapping[str, Cut] | None = None,
    num_threads: int | None = None,
) -> None:
    """Fill every parameter of `model` in place.

    Norm weights are 1 (0 when stored minus one) and biases 0. Matrices are normal with standard
    deviation `init_method_std`, those that write to the residual stream (`linear_proj`,
    `linear_fc2`) with that over sqrt(2 * num_layers); or all Xavier uniform. Without
    `perform_initialization` everything is 0, to be replaced by a checkpoint. Of low-rank adapters,
    which no base model brings along, the first half is always uniform within 1 / sqrt(in) (as PEFT
    draws it) and the second 0.

    Args:
        model: Model whose parameters are not on the meta device.
        config: Resolved model configuration.
        seed: Base seed of the run.
        cuts: Parameter name -> how it is cut from the full one, whose values it gets; None for a
            model of whole parameters.
        num_threads: Parameters drawn at the same time; default PyTorch's number of threads.
    """

    def fill(item: tuple[str, nn.Parameter]) -> None:
        name, parameter = item
        with torch.no_grad():
            _fill(name, parameter, config, seed, None if cuts is None else cuts[name])

    with ThreadPoolExecutor(num_threads or torch.get_num_threads()) as pool:
        for _ in pool.map(fill, model.named_parameters()):
            pass


def parameter_stream(name: str, seed: int) -> np.random.Generator:
    """The random stream that parameter `name` is drawn from."""
    digest = hashlib.sha256(name.encode()).digest()
    entropy = [seed, int.from_bytes(digest[:16], "little")]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def _fill(name: str, parameter: Tensor, config: ModelConfig, seed: int, cut: Cut | None) -> None:
    name = name if cut is None else cut.name
    owner, _, kind = name.rpartition(".")
    is_norm = "layer_norm" in kind or "layernorm" in owner.rpartition(".")[2].replace("_", "")
    is_adapter = is_adapter_name(name)
    if is_adapter and owner.endswith(LINEAR_OUT):
        parameter.zero_()
        return
    if not is_adapter and (not config.perform_initialization or kind.endswith("bias")):
        parameter.zero_()
        return
    if is_norm:
        parameter.fill_(0.0 if config.apply_layernorm_1p else 1.0)
        return
    shape = tuple(parameter.shape) if cut is None else cut.full_shape
    stream = parameter_stream(name, seed)
    if is_adapter:
        draw = _Draw(stream, uniform_bound=1.0 / math.sqrt(shape[1]))
    elif config.init_method_xavier_uniform:
        draw = _Draw(stream, uniform_bound=math.sqrt(6.0 / (shape[0] + shape[1])))
    else:
        std = config.init_method_std
        if owner.endswith(("linear_proj", "linear_fc2")):
            std /= math.sqrt(2.0 * (config.num_layers or 1))
        draw = _Draw(stream, std=std)
    if cut is None or cut.shard_dim is None:
        _fill_flat(parameter.view(-1), draw)
    else:
        _fill_blocks(parameter, draw, cut.boxes(), shape, cut.shard_dim)


class _Draw:
    """The next values of a parameter."""

    def __init__(
        self,
        stream: np.random.Generator,
        *,
        std: float | None = None,
        uniform_bound: float = 0.0,
    ) -> None:
        self._stream = stream
        self._std = std
        self._bound = uniform_bound

    def __call__(self, count: int) -> Tensor:
        """[count] float32."""
        if self._std is not None:
            values = self._stream.standard_normal(count, dtype=np.float32)
            values *= self._std
        else:
            values = self._stream.random(count, dtype=np.float32)
            values *= 2.0 * self._bound
            values -= self._bound
        return torch.from_numpy(values)


def _fill_flat(flat: Tensor, draw: _Draw) -> None:
    for start, count in _pieces(flat.numel(), _PIECE):
        flat[start : start + count].copy_(draw(count))


def _fill_blocks(
    parameter: Tensor, draw: _Draw, blocks: Sequence[Block], shape: tuple[int, ...], dim: int
) -> None:
    """Draw the whole parameter, piece by piece, and keep the blocks along `dim`.

    Seen as [outer, shape[dim] * inner], a block is a range of columns.
    """
    outer, inner = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    width = shape[dim] * inner
    local = parameter.view(outer, -1)
    columns = [
        (block.full_offset[dim] * inner, block.local_offset[dim] * inner, block.shape[dim] * inner)
        for block in blocks
    ]
    for first_row, num_rows in _pieces(outer, max(1, _PIECE // width)):
        rows = local[first_row : first_row + num_rows]
        # Several rows at a time when they are short, and parts of one when it is long.
        for first, count in _pieces(width, width if num_rows > 1 else _PIECE):
            piece = draw(num_rows * count).view(num_rows, count)
            for start, local_start, size in columns:
                low, high = max(first, start), min(first + count, start + size)
                if low < high:
                    target = local_start + low - start
                    rows[:, target : target + high - low] = piece[:, low - first : high - first]


def _pieces(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of the pieces of `total` things."""
    for start in range(0, total, size):
        yield start, min(size, total - start)
