"""Low-rank adapters of linear layers.

y = x W^T + b becomes y = x W^T + b + scale * (dropout(x) A^T) B^T, where only A [r, in] and
B [out, r] are trained. B starts at zero, so that training starts from the model as it was.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4.1. The
names of the two halves are those of Megatron-Core's adapters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megacore.layers.dropout import Dropout
from megacore.layers.linear import Linear

ADAPTER = "adapter"
LINEAR_IN, LINEAR_OUT = "linear_in", "linear_out"


class LowRankAdapter(nn.Module):
    """What is added to the output of one linear layer.

    Attributes:
        linear_in: A, [r, in].
        linear_out: B, [out, r].
        scale: Factor on the product.
        dropout: Of the input, in training; replaced where processes have different parts of it.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        rank: int,
        scale: float,
        dropout: float,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.linear_in = Linear(in_size, rank, bias=False, dtype=dtype, device=device)
        self.linear_out = Linear(rank, out_size, bias=False, dtype=dtype, device=device)
        self.scale = scale
        self.dropout: nn.Module = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., in] to what is added to the output [..., out]."""
        # Scaled where it is narrow.
        added: Tensor = self.linear_out(self.linear_in(self.dropout(x)) * self.scale)
        return added


def is_adapter_name(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's.

    Args:
        name: Full name in the model.
    """
    return f".{ADAPTER}." in name


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * B A, computed in float32 (float64 for float64) and rounded once.

    Args:
        weight: W [out, in].
        down: A [r, in].
        up: B [out, r].
        scale: Factor on the product.

    Returns:
        [out, in] in the dtype of W.
    """
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.addmm(weight.to(wide), up.to(wide), down.to(wide), alpha=scale).to(weight.dtype)
