"""Self-attention with grouped key/value heads, and attention of a decoder to an encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megacore.layers.core_attention import cached_attention, causal_attention, packed_attention
from megacore.layers.full_attention import full_attention
from megacore.layers.kv_cache import KVCache
from megacore.layers.linear import Linear, NormLinear
from megacore.layers.norm import Norm
from megacore.layers.recompute import Recompute, recomputed
from megacore.layers.rotary import RotaryTable, rotate, rotate_split
from megacore.layers.score_attention import Scores
from megacore.layers.spec import TransformerSpec


@dataclass(frozen=True)
class AttentionContext:
    """What every layer of one forward pass shares.

    Attributes:
        rotary: Angles of the tokens, or None.
        local_rotary: Those in layers with a window; None for the same.
        document_lengths: Tokens of each packed document of the flattened batch, or None.
        cache: Keys and values of earlier tokens, or None.
        cache_positions: [B, n] positions in the cache of the tokens of this pass; None when all
            cached keys are visible to every query.
        is_causal: A token sees itself and those before it; otherwise all of its row.
        visible: [B, S] bool, which keys are real and not padding; None: all.
        bias: [N, S, S] added to the scores of each head, or None.
        encoded: [B, Se, H] what a decoder attends to beside its own tokens, or None.
        encoded_visible: [B, Se] bool, as `visible`.
    """

    rotary: RotaryTable | None = None
    local_rotary: RotaryTable | None = None
    document_lengths: tuple[int, ...] | None = None
    cache: KVCache | None = None
    cache_positions: Tensor | None = None
    is_causal: bool = True
    visible: Tensor | None = None
    bias: Tensor | None = None
    encoded: Tensor | None = None
    encoded_visible: Tensor | None = None

    @property
    def cross(self) -> AttentionContext:
        """That of the attention to `encoded`."""
        return AttentionContext(is_causal=False, visible=self.encoded_visible)


class CoreAttention(nn.Module):
    """Attention of queries to keys; no parameters.

    Args:
        spec: Shape and numerics.
        scores: Scale, cap and window of this layer.
    """

    def __init__(self, spec: TransformerSpec, *, scores: Scores) -> None:
        super().__init__()
        self.dropout = spec.attention_dropout
        self.scores = scores

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """Attend with q [B, S, G, R, D], k and v [B, S, G, D]; returns [B, S, G * R * D]."""
        dropout = self.dropout if self.training else 0.0
        if not context.is_causal or context.bias is not None:
            return full_attention(
                q,
                k,
                v,
                visible=context.visible,
                causal=context.is_causal,
                bias=context.bias,
                dropout=dropout,
                scores=self.scores,
            )
        if context.document_lengths is None:
            return causal_attention(q, k, v, dropout=dropout, scores=self.scores)
        return packed_attention(
            q, k, v, context.document_lengths, dropout=dropout, scores=self.scores
        )


class SelfAttention(nn.Module):
    """Norm, fused query/key/value projection, core attention, output projection.

    The rows of `linear_qkv` are grouped by key/value head: for each group its query heads, then
    its key head, then its value head.

    Args:
        spec: Shape and numerics.
        layer_idx: From 0.
        recompute_core: Redo core attention in backward instead of keeping its activations.
        dtype: Dtype of the parameters.
        device: Device of the parameters.

    Attributes:
        recomputed: Runs core attention without keeping its activations.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        layer_idx: int,
        recompute_core: bool,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.layer_idx = layer_idx
        self.recompute_core = recompute_core
        self.recomputed: Recompute = recomputed
        self.scores = Scores(
            scale=spec.softmax_scale,
            layer_scale=layer_idx + 1 if spec.scale_by_layer else 1,
            softcap=spec.attention_softcap,
            window=spec.window_of(layer_idx),
        )
        self.core_attention: nn.Module = CoreAttention(spec, scores=self.scores)
        qkv_size = (spec.num_heads + 2 * spec.num_groups) * spec.head_dim
        self.linear_qkv = NormLinear(
            spec.hidden_size,
            qkv_size,
            bias=spec.linear_bias or spec.qkv_bias,
            spec=spec,
            dtype=dtype,
            device=device,
        )
        self.q_layernorm: Norm | None = None
        self.k_layernorm: Norm | None = None
        if spec.qk_layernorm:
            self.q_layernorm = Norm(spec.head_dim, spec=spec, dtype=dtype, device=device)
            self.k_layernorm = Norm(spec.head_dim, spec=spec, dtype=dtype, device=device)
        self.linear_proj = Linear(
            spec.num_heads * spec.head_dim,
            spec.hidden_size,
            bias=spec.linear_bias,
            dtype=dtype,
            device=device,
        )

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Attend within normalised `x` [B, S, H]; returns the branch's output [B, S, H]."""
        q, k, v = self._project(x, context)
        if context.cache is not None:
            out = self._attend_cached(q, k, v, context)
        elif self.recompute_core and self.training and torch.is_grad_enabled():
            out = self.recomputed(self.core_attention, q, k, v, context)
        else:
            out = self.core_attention(q, k, v, context)
        projected: Tensor = self.linear_proj(out)
        return projected

    def _project(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, S, G, R, D], k and v [B, S, G, D], normalised and turned."""
        spec = self.spec
        ratio = spec.num_heads // spec.num_groups
        # The projection decides how many groups there are and, where it gathers the sequence, how
        # many tokens: a parallel run gives each process some of the heads.
        qkv = self.linear_qkv(x)
        qkv = qkv.view(*qkv.shape[:2], -1, ratio + 2, spec.head_dim)
        rotary = context.rotary
        if self.scores.window is not None and context.local_rotary is not None:
            rotary = context.local_rotary
        if rotary is not None and self.q_layernorm is None:
            return rotate_split(qkv, rotary)
        if ratio == 1:
            q, k, v = qkv.unbind(3)
            q = q[:, :, :, None]
        else:
            q, k, v = qkv.split((ratio, 1, 1), dim=3)
            k, v = k[:, :, :, 0], v[:, :, :, 0]
        if self.q_layernorm is not None and self.k_layernorm is not None:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        if rotary is not None:
            q = rotate(q.flatten(2, 3), rotary).view(q.shape)
            k = rotate(k, rotary)
        return q, k, v

    def _attend_cached(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        cache = context.cache
        assert cache is not None
        first = cache.empty
        keys, values = cache.store(self.layer_idx, k, v)
        if first:
            return causal_attention(q, k, v, scores=self.scores)
        return cached_attention(q, keys, values, context.cache_positions, scores=self.scores)


class CrossAttention(nn.Module):
    """Attention of the tokens of a decoder to those of an encoder.

    The rows of `linear_kv` are grouped by key/value head: for each its key rows, then its value
    rows.

    Args:
        spec: Shape and numerics.
        layer_idx: From 0.
        recompute_core: Redo core attention in backward instead of keeping its activations.
        dtype: Dtype of the parameters.
        device: Device of the parameters.

    Attributes:
        recomputed: Runs core attention without keeping its activations.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        layer_idx: int,
        recompute_core: bool,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.recompute_core = recompute_core
        self.recomputed: Recompute = recomputed
        layer_scale = layer_idx + 1 if spec.scale_by_layer else 1
        scores = Scores(scale=spec.softmax_scale, layer_scale=layer_scale)
        self.core_attention: nn.Module = CoreAttention(spec, scores=scores)
        hidden, bias = spec.hidden_size, spec.linear_bias
        inner = spec.num_heads * spec.head_dim
        both = 2 * spec.num_groups * spec.head_dim
        self.linear_q = Linear(hidden, inner, bias=bias, dtype=dtype, device=device)
        self.linear_kv = Linear(hidden, both, bias=bias, dtype=dtype, device=device)
        self.linear_proj = Linear(inner, hidden, bias=bias, dtype=dtype, device=device)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Attend with normalised `x` [B, S, H]; returns the branch's output [B, S, H]."""
        spec, encoded = self.spec, context.encoded
        assert encoded is not None
        ratio = spec.num_heads // spec.num_groups
        q, kv = self.linear_q(x), self.linear_kv(encoded)
        q = q.view(*q.shape[:2], -1, ratio, spec.head_dim)
        k, v = kv.view(*kv.shape[:2], -1, 2, spec.head_dim).unbind(3)
        if self.recompute_core and self.training and torch.is_grad_enabled():
            out = self.recomputed(self.core_attention, q, k, v, context.cross)
        else:
            out = self.core_attention(q, k, v, context.cross)
        projected: Tensor = self.linear_proj(out)
        return projected
