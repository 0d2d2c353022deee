"""What all models have in common: what must be known to cut them into stages and shards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megacore.layers.embedding import Embedding
from megacore.layers.linear import Product
from megacore.layers.spec import TransformerSpec
from megacore.layers.transformer import TransformerBlock
from megacore.ops.linear import linear


class OutputLayer(nn.Module):
    """Projection to the vocabulary; without a weight of its own when the embedding is tied.

    Attributes:
        tied: The weight is that of the word embedding. One of its own is then a copy of that,
            which a part of a model that lacks the embedding has.
        product: Computes the logits from hidden states, weight and bias (or None).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        tied: bool,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.tied = tied
        self.product: Product = linear
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        if tied:
            self.register_parameter("weight", None)
        else:
            self.weight = nn.Parameter(
                torch.empty(vocab_size, hidden_size, dtype=dtype, device=device)
            )
        if bias:
            self.bias = nn.Parameter(torch.empty(vocab_size, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)

    def forward(self, hidden: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        """Logits [..., V] of `hidden` [..., H]; `tied_weight` is used when it has none."""
        weight = tied_weight if self.weight is None else self.weight
        assert weight is not None
        return self.product(hidden, weight, self.bias)


class StagedModel(nn.Module):
    """A model whose stacks of layers can be divided into pipeline stages.

    Attributes:
        spec: Shape and numerics; of the first stack, where there are two.
        dtype: Dtype of the parameters.
        embedding: None in a part of a model, cut into stages, that does not begin with it.
        output_layer: None in a part that does not end with it, and in models without one.
        loss: Losses of tokens from logits and labels.
        linear_loss: Losses of tokens from hidden states, weight of the output layer and labels,
            without logits; None where the logits are made.
        join_sequence: Makes whole sequences of hidden states before what follows the last layer,
            where a process has parts of them; None in models that need none.
        has_end: Whether this part has what follows the last layer; one that has not returns hidden
            states.
    """

    spec: TransformerSpec
    dtype: torch.dtype
    embedding: Embedding | None
    output_layer: OutputLayer | None
    loss: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.has_end = True
        self.linear_loss: nn.Module | None = None
        self.join_sequence: Callable[[Tensor], Tensor] | None = None

    @property
    def blocks(self) -> dict[str, TransformerBlock]:
        """The stacks of layers by name, in the order in which they run."""
        children = self.named_children()
        return {name: child for name, child in children if isinstance(child, TransformerBlock)}

    def drop_end(self) -> None:
        """Take away, in place, what follows the last layer and its norm."""
        self.has_end = False
        self.output_layer = None
