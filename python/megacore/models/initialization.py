"""Initial weights that depend on the seed and a parameter's name only.

Each parameter is drawn from its own counter-based stream, in row-major order of the full tensor.
So the weights are the same whatever the depth of the rest, the device, the dtype (up to rounding)
and the layout a parallel run slices them into; and the first rows of an embedding do not depend
on how far the vocabulary is padded.
"""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from megacore.models.config import ModelConfig

# Drawn and copied in pieces, so that no full float64 copy of a large tensor exists.
_PIECE = 1 << 22


def init_weights(
    model: nn.Module, config: ModelConfig, *, seed: int, num_threads: int | None = None
) -> None:
    """Fill every parameter of `model` in place.

    Norm weights are 1 (0 when stored minus one) and biases 0. Matrices are normal with standard
    deviation `init_method_std`, those that write to the residual stream (`linear_proj`,
    `linear_fc2`) with that over sqrt(2 * num_layers); or all Xavier uniform. Without
    `perform_initialization` everything is 0, to be replaced by a checkpoint.

    Args:
        model: Model whose parameters are not on the meta device.
        config: Resolved model configuration.
        seed: Base seed of the run.
        num_threads: Parameters drawn at the same time; default PyTorch's number of threads.
    """

    def fill(item: tuple[str, nn.Parameter]) -> None:
        name, parameter = item
        with torch.no_grad():
            _fill(name, parameter, config, seed)

    with ThreadPoolExecutor(num_threads or torch.get_num_threads()) as pool:
        for _ in pool.map(fill, model.named_parameters()):
            pass


def parameter_stream(name: str, seed: int) -> np.random.Generator:
    """The random stream that parameter `name` is drawn from."""
    digest = hashlib.sha256(name.encode()).digest()
    entropy = [seed, int.from_bytes(digest[:16], "little")]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def _fill(name: str, parameter: Tensor, config: ModelConfig, seed: int) -> None:
    owner, _, kind = name.rpartition(".")
    is_norm = "layer_norm" in kind or "layernorm" in owner.rpartition(".")[2]
    if not config.perform_initialization or kind.endswith("bias"):
        parameter.zero_()
    elif is_norm:
        parameter.fill_(0.0 if config.apply_layernorm_1p else 1.0)
    elif config.init_method_xavier_uniform:
        bound = math.sqrt(6.0 / (parameter.shape[0] + parameter.shape[1]))
        _draw(parameter, parameter_stream(name, seed), uniform_bound=bound)
    else:
        std = config.init_method_std
        if owner.endswith(("linear_proj", "linear_fc2")):
            std /= math.sqrt(2.0 * (config.num_layers or 1))
        _draw(parameter, parameter_stream(name, seed), std=std)


def _draw(
    parameter: Tensor,
    stream: np.random.Generator,
    *,
    std: float | None = None,
    uniform_bound: float = 0.0,
) -> None:
    flat = parameter.view(-1)
    for start in range(0, flat.numel(), _PIECE):
        count = min(_PIECE, flat.numel() - start)
        if std is not None:
            values = stream.standard_normal(count, dtype=np.float32)
            values *= std
        else:
            values = stream.random(count, dtype=np.float32)
            values *= 2.0 * uniform_bound
            values -= uniform_bound
        flat[start : start + count].copy_(torch.from_numpy(values))
