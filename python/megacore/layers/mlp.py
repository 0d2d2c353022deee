"""The feed-forward branch of a transformer layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megacore.layers.linear import Linear, NormLinear
from megacore.layers.spec import Activation, TransformerSpec


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the non-linearity to `x` elementwise."""
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "gelu_erf":
        return F.gelu(x)
    if activation == "gelu_quick":
        return x * torch.sigmoid(1.702 * x)
    if activation == "squared_relu":
        return F.relu(x).square()
    return F.silu(x)


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
        inner = self.linear_fc1(x)
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            inner = activate(gate, self.activation) * value
        else:
            inner = activate(inner, self.activation)
        out: Tensor = self.linear_fc2(inner)
        return out
