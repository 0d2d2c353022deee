"""The feed-forward branch of a transformer layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megacore.layers.linear import Linear, NormLinear
from megacore.layers.spec import TransformerSpec
from megacore.ops.activation import activation


class MLP(nn.Module):
    """Norm, `linear_fc1`, activation, `linear_fc2`."""

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.activation = spec.activation
        self.gated = spec.gated_mlp
        self.fused_bias = spec.fused_activation_bias
        inner = spec.ffn_hidden_size
        self.linear_fc1 = NormLinear(
            spec.hidden_size,
            2 * inner if spec.gated_mlp else inner,
            bias=spec.linear_bias,
            spec=spec,
            dtype=dtype,
            device=device,
        )
        self.linear_fc2 = Linear(
            inner, spec.hidden_size, bias=spec.linear_bias, dtype=dtype, device=device
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised `x` [..., H] to the branch's output [..., H]."""
        if self.fused_bias and self.linear_fc1.bias is not None:
            inner, bias = self.linear_fc1.without_bias(x), self.linear_fc1.bias
        else:
            inner, bias = self.linear_fc1(x), None
        if self.activation == "relu":
            inner = F.relu(inner if bias is None else inner + bias)
        else:
            inner = activation(inner, self.activation, gated=self.gated, bias=bias)
        out: Tensor = self.linear_fc2(inner)
        return out
