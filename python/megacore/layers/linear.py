"""Linear layers; weights are [out, in] and start uninitialised (see `models.initialization`).

The product itself is an attribute of a layer, a function of input, weight and bias: who splits the
weight over processes or computes its gradient at another time puts a function of his own there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megacore.layers.norm import normalize
from megacore.layers.spec import TransformerSpec
from megacore.ops.linear import linear

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Linear(nn.Module):
    """y = x W^T + b.

    Attributes:
        product: Computes y from x, W and b (or None).
        adapter: Maps x to something that is added to y; or None.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size, dtype=dtype, device=device))
        self.bias: nn.Parameter | None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_size, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)
        self.product: Product = linear
        self.adapter: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., in] to [..., out]."""
        return self._adapted(self.product(x, self.weight, self.bias), x)

    def without_bias(self, x: Tensor) -> Tensor:
        """The same without the bias, which the caller adds: `x` [..., in] to [..., out]."""
        return self._adapted(self.product(x, self.weight, None), x)

    def _adapted(self, y: Tensor, x: Tensor) -> Tensor:
        return y if self.adapter is None else y + self.adapter(x)


class NormLinear(Linear):
    """A norm and the linear layer that follows it, with the norm's parameters as its own."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        bias: bool,
        spec: TransformerSpec,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__(in_size, out_size, bias=bias, dtype=dtype, device=device)
        self.spec = spec
        self.layer_norm_weight = nn.Parameter(torch.empty(in_size, dtype=dtype, device=device))
        self.layer_norm_bias: nn.Parameter | None
        if spec.normalization == "LayerNorm":
            self.layer_norm_bias = nn.Parameter(torch.empty(in_size, dtype=dtype, device=device))
        else:
            self.register_parameter("layer_norm_bias", None)

    def normalized(self, x: Tensor) -> Tensor:
        """The norm alone: `x` [..., in] to [..., in] in the dtype of the weights."""
        return normalize(x, self.layer_norm_weight, self.layer_norm_bias, self.spec)
