"""An encoder that says which class its text belongs to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.layers.linear import Linear
from megacore.models.bert import BertModel
from megacore.models.config import ModelConfig, RecomputeConfig


class PooledEncoder(BertModel):
    """A BERT whose pooled first token goes to a linear layer instead of the pretraining heads.

    Args:
        config: Architecture; with token types and pooler (`bert_binary_head`).
        padded_vocab_size: Rows of the word embedding.
        head: Name of the linear layer, which is that of its parameters.
        num_outputs: What it gives for each row.
        recompute: See `BertModel`, as the arguments that follow.

    Raises:
        ConfigError: A needed size is missing or the sizes do not fit together.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        padded_vocab_size: int,
        head: str,
        num_outputs: int,
        recompute: RecomputeConfig | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        fp16_lm_cross_entropy: bool = False,
    ) -> None:
        super().__init__(
            config,
            padded_vocab_size=padded_vocab_size,
            recompute=recompute,
            dtype=dtype,
            device=device,
            fp16_lm_cross_entropy=fp16_lm_cross_entropy,
        )
        self.lm_head = None
        self.binary_head = None
        self.output_layer = None
        self._head = head
        width = self.spec.hidden_size
        self.add_module(head, Linear(width, num_outputs, bias=True, dtype=dtype, device=device))

    def scores(
        self,
        tokens: Tensor,
        lengths: Tensor | None,
        *,
        types: Tensor | None,
        hidden: Tensor | None,
    ) -> Tensor:
        """What the head gives [B, outputs]; hidden states from a part without it.

        Arguments as `BertModel.forward`. The pooled vector is subject to hidden dropout.
        """
        hidden = self.encode(tokens, lengths, types=types, hidden=hidden)
        if self.pooler is None:
            return hidden
        pooled = F.dropout(self.pooler(hidden), self.spec.hidden_dropout, self.training)
        scores: Tensor = self.get_submodule(self._head)(pooled)
        return scores

    def drop_end(self) -> None:
        """Take away, in place, pooler and head."""
        super().drop_end()
        delattr(self, self._head)


class ClassificationModel(PooledEncoder):
    """A BERT with `classification_head` [classes, H]; arguments as `PooledEncoder`.

    Args:
        config: Architecture.
        num_classes: Classes that a text may belong to.
        settings: The rest.
    """

    def __init__(self, config: ModelConfig, *, num_classes: int, **settings: object) -> None:
        super().__init__(
            config,
            head="classification_head",
            num_outputs=num_classes,
            **settings,  # type: ignore[arg-type]
        )

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        types: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, classes] of rows of `tokens` [B, S]; hidden states from a part of a model."""
        return self.scores(tokens, lengths, types=types, hidden=hidden)
