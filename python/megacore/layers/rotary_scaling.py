"""Frequencies of rotary positions, stretched for sequences longer than those of the first training.

Sources: Chen et al., "Extending Context Window of Large Language Models via Positional
Interpolation" (2023); Peng et al., "YaRN" (2023), sections 3.2 to 3.4; Ding et al., "LongRoPE"
(2024); Llama 3.1 (Meta, 2024), `apply_scaling` of its reference code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All frequencies are divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies are divided by `factor`, high ones kept, those between blended.

    Attributes:
        factor: Divisor of low frequencies.
        low_freq_factor: Wavelengths above `original_length` over this are low frequencies.
        high_freq_factor: Wavelengths below `original_length` over this are high frequencies.
        original_length: Positions of the first training.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Lanes that turn rarely are divided by `factor`, those that turn often kept, a ramp between.

    Attributes:
        factor: Divisor of low frequencies.
        beta_fast: Lanes with at least so many turns within `original_length` are kept.
        beta_slow: Lanes with at most so many turns are divided.
        original_length: Positions of the first training.
        truncate: The ends of the ramp are whole lanes.
        attention_factor: Rotated lanes are multiplied by this.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    original_length: int
    truncate: bool
    attention_factor: float


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """Every lane has a divisor of its own; long sequences have other ones than short sequences.

    Attributes:
        short_factors: Divisors while a sequence has at most `original_length` tokens.
        long_factors: Divisors of longer sequences.
        original_length: Positions of the first training.
        attention_factor: Rotated lanes are multiplied by this.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float


RotaryScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1, which keeps the entropy of attention (YaRN, equation 22)."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def longrope_attention_factor(factor: float, original_length: int) -> float:
    """sqrt(1 + ln(factor) / ln(original length)) (LongRoPE, section 3.3)."""
    if factor <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(factor) / math.log(original_length))


def frequencies(
    dim: int,
    base: float,
    scaling: RotaryScaling | None,
    *,
    length: Tensor | int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, float]:
    """Angle per position of every pair of lanes, and what the rotated lanes are multiplied by.

    Args:
        dim: Rotated lanes of a head.
        base: Base of the geometric series of wavelengths.
        scaling: How they are stretched.
        length: Tokens of the sequence, or a tensor of shape [] or [B, 1, 1]; LongRoPE reads it.
        dtype: float32 or float64.
        device: Where the result lives.

    Returns:
        Frequencies [dim / 2], or [B, 1, dim / 2], and the attention factor.
    """
    lanes = torch.arange(0, dim, 2, dtype=dtype, device=device)
    wavelengths = base ** (lanes / dim)
    plain = 1.0 / wavelengths
    if scaling is None:
        return plain, 1.0
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(plain, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        kept = _yarn_kept(dim, base, scaling).to(plain)
        divided = 1.0 / (scaling.factor * wavelengths)
        return divided * (1 - kept) + plain * kept, scaling.attention_factor
    short, long = (
        1.0 / (torch.tensor(factors, dtype=dtype, device=device) * wavelengths)
        for factors in (scaling.short_factors, scaling.long_factors)
    )
    is_long = torch.as_tensor(length, device=device) > scaling.original_length
    return torch.where(is_long, long, short), scaling.attention_factor


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_length / (2 * math.pi / plain)
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * (plain / scaling.factor) + blend * plain


def _yarn_kept(dim: int, base: float, scaling: YarnScaling) -> Tensor:
    """[dim / 2] share of each lane that keeps its frequency."""

    def lane_of(turns: float) -> float:
        ratio = scaling.original_length / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(base))

    first, last = lane_of(scaling.beta_fast), lane_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first if last != first else 0.001
    ramp = (torch.arange(dim // 2, dtype=torch.float64) - first) / width
    return 1.0 - ramp.clamp(0.0, 1.0)
