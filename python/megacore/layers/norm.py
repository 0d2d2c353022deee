"""LayerNorm and RMSNorm as a module, over the fused ops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megacore.layers.spec import TransformerSpec
from megacore.ops.norm import (
    layer_norm,
    layer_norm_reference,
    rms_norm,
    rms_norm_reference,
)


def normalize(x: Tensor, weight: Tensor, bias: Tensor | None, spec: TransformerSpec) -> Tensor:
    """Normalise the last dimension; the result has the dtype of `weight`.

    Args:
        x: [..., n], the dtype of `weight`, or float32 (residual stream kept in float32).
        weight: [n].
        bias: [n]; None for RMSNorm.
        spec: Kind, epsilon and whether the weight is stored minus one.
    """
    result_dtype = weight.dtype
    if x.dtype != result_dtype:
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
    eps, zero_centered = spec.norm_epsilon, spec.zero_centered_norm
    # The kernels have no float64, which serves comparisons only.
    wide = x.dtype == torch.float64
    if spec.normalization == "RMSNorm":
        rms = rms_norm_reference if wide else rms_norm
        y = rms(x, weight, eps=eps, zero_centered=zero_centered)
    else:
        layer = layer_norm_reference if wide else layer_norm
        y = layer(x, weight, bias, eps=eps, zero_centered=zero_centered)
    return y.to(result_dtype)


class Norm(nn.Module):
    """A norm over the last dimension, of size `width`."""

    def __init__(
        self,
        width: int,
        *,
        spec: TransformerSpec,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device=device))
        self.bias: nn.Parameter | None
        if spec.normalization == "LayerNorm":
            self.bias = nn.Parameter(torch.empty(width, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., width]."""
        return normalize(x, self.weight, self.bias, self.spec)
