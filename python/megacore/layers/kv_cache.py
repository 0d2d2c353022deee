"""Keys and values of the tokens a model has already seen, for token-by-token generation."""

from __future__ import annotations

import torch
from torch import Tensor

from megacore.errors import UsageError
from megacore.layers.spec import TransformerSpec


class KVCache:
    """Preallocated keys and values of a batch of rows that may have different lengths.

    A forward pass appends n tokens to every row, at the row's own length. Rows of a padded batch
    are then set to the number of tokens that count (`advance`); what lies beyond is hidden from
    attention and overwritten by the next tokens. No gradient flows through the cache.

    Args:
        spec: Stack whose keys and values are kept.
        batch_size: Rows B.
        capacity: Most tokens a row can hold.
        dtype: Dtype of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (spec.num_layers, 2, batch_size, spec.num_groups, capacity, spec.head_dim)
        # Zeros, not garbage: hidden positions are multiplied by weight 0, and 0 * NaN is NaN.
        self._store = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        # The same on the host, so that no step waits for the device.
        self._host_lengths = [0] * batch_size
        self._longest = 0
        self._equal = True

    @property
    def batch_size(self) -> int:
        """Rows B."""
        return self._store.shape[2]

    @property
    def empty(self) -> bool:
        """No row holds a token."""
        return self._longest == 0

    @property
    def equal_lengths(self) -> bool:
        """All rows hold the same number of tokens."""
        return self._equal

    @property
    def longest(self) -> int:
        """Tokens in the fullest row."""
        return self._longest

    def positions(self, count: int) -> Tensor:
        """Positions [B, count] of the next `count` tokens of every row."""
        steps = torch.arange(count, device=self.lengths.device)
        return self.lengths[:, None] + steps

    def store(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next tokens of one layer; return everything held so far.

        Args:
            layer_idx: Layer, from 0.
            key: [B, n, G, D].
            value: [B, n, G, D].

        Returns:
            Keys and values [B, G, longest + n, D]; beyond a row's own tokens they are undefined.

        Raises:
            UsageError: The tokens do not fit.
        """
        key, value = key.detach(), value.detach()
        count = key.shape[1]
        end = self._longest + count
        if end > self.capacity:
            raise UsageError(f"key/value cache holds {self.capacity} tokens, {end} are needed")
        keys, values = self._store[layer_idx, 0], self._store[layer_idx, 1]
        if self._equal:
            keys[:, :, self._longest : end] = key.transpose(1, 2)
            values[:, :, self._longest : end] = value.transpose(1, 2)
        else:
            rows = torch.arange(self.batch_size, device=keys.device)[:, None]
            positions = self.positions(count)
            keys.transpose(1, 2)[rows, positions] = key
            values.transpose(1, 2)[rows, positions] = value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, counts: list[int]) -> None:
        """Declare the first `counts[b]` tokens of the last forward pass part of row b."""
        pairs = zip(self._host_lengths, counts, strict=True)
        self._set_lengths([old + new for old, new in pairs])

    def keep_rows(self, rows: list[int]) -> None:
        """Drop every row but `rows`, in that order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._store.device)
        self._store = self._store.index_select(2, index)
        self._set_lengths([self._host_lengths[row] for row in rows])

    def _set_lengths(self, lengths: list[int]) -> None:
        self._host_lengths = lengths
        self.lengths = torch.tensor(lengths, dtype=torch.int64, device=self._store.device)
        self._longest = max(lengths)
        self._equal = min(lengths) == self._longest
