"""Relative position biases: a number per head and per bucket of distances, added to the scores.

Half of the buckets are for single short distances, the others grow logarithmically up to a largest
distance, from which on all share the last one.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (2020), section 2.1, and its code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megacore.layers.embedding import Table


def distance_buckets(
    length: int,
    *,
    num_buckets: int,
    max_distance: int,
    bidirectional: bool,
    device: torch.device | str | None = None,
) -> Tensor:
    """The bucket of every query and key: int64 [length, length].

    Args:
        length: Queries, and keys.
        num_buckets: Buckets; half of them for keys behind the query when `bidirectional`.
        max_distance: Distances from this one on share a bucket.
        bidirectional: Keys behind the query have buckets of their own; otherwise they share the
            bucket of distance 0 (and are not seen).
        device: Of the result.
    """
    places = torch.arange(length, device=device)
    behind = places[None] - places[:, None]
    first = torch.zeros_like(behind)
    if bidirectional:
        num_buckets //= 2
        first = (behind > 0).long() * num_buckets
        distance = behind.abs()
    else:
        distance = (-behind).clamp_min(0)
    exact = num_buckets // 2
    # In float32, in this order: the buckets of trained models were made so.
    steps = torch.log(distance.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    far = exact + (steps * (num_buckets - exact)).long()
    return first + torch.where(distance < exact, distance, far.clamp_max(num_buckets - 1))


class RelativePositionBias(nn.Module):
    """The biases of all layers of one stack.

    Args:
        num_heads: Query heads N.
        num_buckets: As `distance_buckets`.
        max_distance: As `distance_buckets`.
        bidirectional: As `distance_buckets`.
        dtype: Dtype of the table.
        device: Device of the table.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        num_buckets: int,
        max_distance: int,
        bidirectional: bool,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.relative_attention_bias = Table(num_buckets, num_heads, dtype=dtype, device=device)

    def forward(self, length: int) -> Tensor:
        """Biases [N, length, length] of the scores; N as many heads as the table has."""
        buckets = distance_buckets(
            length,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
            device=self.relative_attention_bias.weight.device,
        )
        found: Tensor = self.relative_attention_bias(buckets)
        return found.permute(2, 0, 1).contiguous()
