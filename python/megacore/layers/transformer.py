"""A pre-norm transformer layer and the stack of them, with activation recompute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from megacore.layers.attention import AttentionContext, CrossAttention, SelfAttention
from megacore.layers.dropout import Dropout
from megacore.layers.embedding import widened
from megacore.layers.mlp import MLP
from megacore.layers.norm import Norm
from megacore.layers.recompute import Recompute, recomputed
from megacore.layers.spec import RecomputeSpec, TransformerSpec


class TransformerLayer(nn.Module):
    """x + dropout(attention(norm(x))), then the same with the MLP.

    With `parallel_residual` the MLP reads x too; with `post_branch_norm` a second norm stands
    behind each branch. In a decoder that follows an encoder, attention to the encoder comes
    between the two, with a norm of its own.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        layer_idx: int,
        recompute_core: bool,
        attends_encoder: bool = False,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.self_attention = SelfAttention(
            spec, layer_idx=layer_idx, recompute_core=recompute_core, dtype=dtype, device=device
        )
        self.pre_cross_attn_layernorm: Norm | None = None
        self.cross_attention: CrossAttention | None = None
        if attends_encoder:
            self.pre_cross_attn_layernorm = Norm(
                spec.hidden_size, spec=spec, dtype=dtype, device=device
            )
            self.cross_attention = CrossAttention(
                spec, layer_idx=layer_idx, recompute_core=recompute_core, dtype=dtype, device=device
            )
        self.mlp = MLP(spec, dtype=dtype, device=device)
        self.post_attention_layernorm: Norm | None = None
        self.post_mlp_layernorm: Norm | None = None
        if spec.post_branch_norm:
            width = spec.hidden_size
            self.post_attention_layernorm = Norm(width, spec=spec, dtype=dtype, device=device)
            self.post_mlp_layernorm = Norm(width, spec=spec, dtype=dtype, device=device)
        self.hidden_dropout: nn.Module = Dropout(spec.hidden_dropout, fused=spec.fused_dropout)

    @property
    def attentions(self) -> list[SelfAttention | CrossAttention]:
        """Its attention modules, in order."""
        if self.cross_attention is None:
            return [self.self_attention]
        return [self.self_attention, self.cross_attention]

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Map the residual stream `x` [B, S, H] to the next one."""
        normed = self.self_attention.linear_qkv.normalized(x)
        attended = self.self_attention(normed, context)
        if self.post_attention_layernorm is not None:
            attended = self.post_attention_layernorm(attended)
        middle = self._add(x, normed, attended)
        if self.cross_attention is not None and self.pre_cross_attn_layernorm is not None:
            normed = self.pre_cross_attn_layernorm(middle)
            middle = self._add(middle, normed, self.cross_attention(normed, context))
        normed = self.mlp.linear_fc1.normalized(x if self.spec.parallel_residual else middle)
        branch = self.mlp(normed)
        if self.post_mlp_layernorm is not None:
            branch = self.post_mlp_layernorm(branch)
        return self._add(middle, normed, branch)

    def _add(self, x: Tensor, normed: Tensor, branch: Tensor) -> Tensor:
        residual = normed if self.spec.residual_after_norm else x
        total: Tensor = self.hidden_dropout(branch, residual)
        return widened(total) if self.spec.fp32_residual else total


Layers = Callable[[Tensor, AttentionContext], Tensor]


class TransformerBlock(nn.Module):
    """The stack of layers and the norm behind it.

    Recompute restores the random state, so dropout and results are bitwise those without it.

    Attributes:
        layers: Layer number, as text, -> layer, in order. A part of a model that was cut into
            stages holds some of them, under the numbers that they have in the whole.
        final_layernorm: Norm of the output; None in all stages but the last.
        recomputed: Runs layers without keeping their activations.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        recompute: RecomputeSpec,
        attends_encoder: bool = False,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.recomputed: Recompute = recomputed
        self.layers = nn.ModuleDict(
            {
                str(layer_idx): TransformerLayer(
                    spec,
                    layer_idx=layer_idx,
                    recompute_core=recompute.kind == "selective",
                    attends_encoder=attends_encoder,
                    dtype=dtype,
                    device=device,
                )
                for layer_idx in range(spec.num_layers)
            }
        )
        self.final_layernorm: Norm | None = Norm(
            spec.hidden_size, spec=spec, dtype=dtype, device=device
        )

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Map embeddings [B, S, H] to normalised hidden states [B, S, H]."""
        layers = list(self.layers.values())
        redo = self.training and torch.is_grad_enabled()
        if redo and self.recompute.kind == "uniform":
            size = self.recompute.num_layers
            for first in range(0, len(layers), size):
                x = self.recomputed(_sequence(layers[first : first + size]), x, context)
        else:
            count = self.recompute.num_layers if redo and self.recompute.kind == "block" else 0
            for layer in layers[:count]:
                x = self.recomputed(layer, x, context)
            x = _sequence(layers[count:])(x, context)
        if self.final_layernorm is not None:
            x = self.final_layernorm(x)
        return x


def _sequence(layers: Sequence[nn.Module]) -> Layers:
    """The layers one after the other as one function."""

    def run(x: Tensor, context: AttentionContext) -> Tensor:
        for layer in layers:
            x = layer(x, context)
        return x

    return run
