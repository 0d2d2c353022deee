"""Embeddings of tokens, positions and token types."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megacore.layers.dropout import Dropout
from megacore.ops.embedding import embedding


def lookup(table: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` [...] of `table` [n, h] as [..., h]; gradients are summed in float32."""
    return embedding(table, indices)


def widened(x: Tensor) -> Tensor:
    """`x` in float32, as a residual stream is kept; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


class Table(nn.Module):
    """An embedding table: one `weight` [rows, width].

    Attributes:
        lookup: Finds the rows of the table; replaced where a process has only some of them.
    """

    def __init__(
        self, rows: int, width: int, *, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, dtype=dtype, device=device))
        self.lookup: Callable[[Tensor, Tensor], Tensor] = lookup

    def forward(self, indices: Tensor) -> Tensor:
        """Rows `indices` [...] as [..., width]."""
        return self.lookup(self.weight, indices)


class Embedding(nn.Module):
    """Word embedding plus, optionally, learned embeddings of positions and types; then dropout.

    Args:
        vocab_size: Rows of the word table (padded vocabulary).
        hidden_size: Width of both tables.
        num_positions: Rows of the position table; None for no learned positions.
        num_types: Rows of the table of token types; None for none.
        dropout: Drop probability in training.
        fp32_residual: Return float32 whatever the dtype of the tables (but float64).
        fused_dropout: Dropout keeps no mask (see `Dropout`).
        scale: Word embeddings are multiplied by this, rounded to `dtype`; None for not.
        dtype: Dtype of the tables.
        device: Device of the tables.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        num_positions: int | None,
        num_types: int | None = None,
        dropout: float,
        fp32_residual: bool,
        fused_dropout: bool = True,
        scale: float | None = None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.dropout: nn.Module = Dropout(dropout, fused=fused_dropout)
        self.fp32_residual = fp32_residual
        self.scale = None if scale is None else torch.tensor(scale, dtype=dtype).item()
        self.word_embeddings = Table(vocab_size, hidden_size, dtype=dtype, device=device)
        self.position_embeddings: Table | None = None
        if num_positions is not None:
            self.position_embeddings = Table(num_positions, hidden_size, dtype=dtype, device=device)

        self.tokentype_embeddings: Table | None = None
        if num_types is not None:
            self.tokentype_embeddings = Table(num_types, hidden_size, dtype=dtype, device=device)

    def forward(self, tokens: Tensor, position_ids: Tensor, types: Tensor | None = None) -> Tensor:
        """Embed `tokens` [B, S] at `position_ids` [B or 1, S]; returns [B, S, H].

        `types` [B, S] int64 are all 0 where they are not given.
        """
        x = self.word_embeddings(tokens)
        if self.scale is not None:
            x = x * self.scale
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(position_ids)
        if self.tokentype_embeddings is not None:
            x = x + self.tokentype_embeddings(torch.zeros_like(tokens) if types is None else types)
        if self.fp32_residual:
            x = widened(x)
        dropped: Tensor = self.dropout(x)
        return dropped
