"""A pre-norm transformer layer and the stack of them, with activation recompute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megacore.layers.attention import AttentionContext, SelfAttention
from megacore.layers.mlp import MLP
from megacore.layers.norm import Norm
from megacore.layers.spec import RecomputeSpec, TransformerSpec


class TransformerLayer(nn.Module):
    """x + dropout(attention(norm(x))), then the same with the MLP."""

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
        self.self_attention = SelfAttention(
            spec, layer_idx=layer_idx, recompute_core=recompute_core, dtype=dtype, device=device
        )
        self.mlp = MLP(spec, dtype=dtype, device=device)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Map the residual stream `x` [B, S, H] to the next one."""
        normed = self.self_attention.linear_qkv.normalized(x)
        x = self._add(x, normed, self.self_attention(normed, context))
        normed = self.mlp.linear_fc1.normalized(x)
        return self._add(x, normed, self.mlp(normed))

    def _add(self, x: Tensor, normed: Tensor, branch: Tensor) -> Tensor:
        residual = normed if self.spec.residual_after_norm else x
        if self.training and self.spec.hidden_dropout > 0.0:
            branch = F.dropout(branch, self.spec.hidden_dropout)
        total = residual + branch
        return total.float() if self.spec.fp32_residual else total


class TransformerBlock(nn.Module):
    """The stack of layers and the norm behind it.

    Recompute restores the random state, so dropout and results are bitwise those without it.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        recompute: RecomputeSpec,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.layers = nn.ModuleList(
            TransformerLayer(
                spec,
                layer_idx=layer_idx,
                recompute_core=recompute.kind == "selective",
                dtype=dtype,
                device=device,
            )
            for layer_idx in range(spec.num_layers)
        )
        self.final_layernorm = Norm(spec.hidden_size, spec=spec, dtype=dtype, device=device)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Map embeddings [B, S, H] to normalised hidden states [B, S, H]."""
        kind = self.recompute.kind
        redo = self.training and torch.is_grad_enabled() and kind in ("uniform", "block")
        if not redo:
            x = self._run(0, len(self.layers), x, context)
        elif kind == "uniform":
            for first in range(0, len(self.layers), self.recompute.num_layers):
                last = min(first + self.recompute.num_layers, len(self.layers))
                x = self._run_recomputed(first, last, x, context)
        else:
            recomputed = min(self.recompute.num_layers, len(self.layers))
            for layer_idx in range(recomputed):
                x = self._run_recomputed(layer_idx, layer_idx + 1, x, context)
            x = self._run(recomputed, len(self.layers), x, context)
        normed: Tensor = self.final_layernorm(x)
        return normed

    def _run(self, first: int, last: int, x: Tensor, context: AttentionContext) -> Tensor:
        for layer in self.layers[first:last]:
            x = layer(x, context)
        return x

    def _run_recomputed(
        self, first: int, last: int, x: Tensor, context: AttentionContext
    ) -> Tensor:
        result = checkpoint(self._run, first, last, x, context, use_reentrant=False)
        assert isinstance(result, Tensor)
        return result
