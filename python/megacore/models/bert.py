"""BERT: an encoder with a head for masked tokens and one for the order of sentences."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megacore.errors import UsageError
from megacore.layers.attention import AttentionContext
from megacore.layers.cross_entropy import TokenLoss
from megacore.layers.embedding import Embedding
from megacore.layers.linear import Linear
from megacore.layers.norm import Norm
from megacore.layers.rotary import rotary_table
from megacore.layers.spec import TransformerSpec
from megacore.layers.transformer import TransformerBlock
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.padding import visible_tokens
from megacore.models.resolve import recompute_spec, transformer_spec
from megacore.models.staged import OutputLayer, StagedModel
from megacore.ops.activation import activation

# Rows of the table of token types: a sample has at most two segments.
NUM_TYPES = 2


class BertOutput(NamedTuple):
    """What a BERT gives.

    Attributes:
        tokens: Logits [B, S, V] or [n, V] of tokens, or their losses [B, S] or [n] in float32.
        order: Logits [B, 2] of the two orders of the sentences; None without that head.
    """

    tokens: Tensor
    order: Tensor | None


class LMHead(nn.Module):
    """What stands before the output layer: a linear layer, GELU and a norm.

    GELU is exact here, whatever the form in the layers, unless `openai_gelu`.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        tanh_gelu: bool,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        width = spec.hidden_size
        self.gelu = "gelu_tanh" if tanh_gelu else "gelu_erf"
        self.dense = Linear(width, width, bias=True, dtype=dtype, device=device)
        self.layer_norm = Norm(width, spec=spec, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `hidden` [..., H] to [..., H]."""
        normed: Tensor = self.layer_norm(activation(self.dense(hidden), self.gelu))
        return normed


class Pooler(nn.Module):
    """A vector for a whole row, from its first token."""

    def __init__(
        self, width: int, *, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.dense = Linear(width, width, bias=True, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """tanh(W x + b) [B, H] of the first token of `hidden` [B, S, H]."""
        return torch.tanh(self.dense(hidden[:, 0]))


class BertModel(StagedModel):
    """An encoder whose layers normalise first, as Megatron-LM's; see docs/models.md for others.

    Parameters are uninitialised until `models.initialization.init_weights` or a checkpoint fills
    them. Their names and shapes are those of Megatron-Core's BERT.

    Args:
        config: Architecture; derived defaults are filled in.
        padded_vocab_size: Rows of the word embedding.
        recompute: Which activations are recomputed in backward; None keeps all.
        dtype: Dtype of every parameter and, but for the residual stream with
            `fp32_residual_connection`, of the activations.
        device: Device of the parameters ("meta" for a model without memory).
        fp16_lm_cross_entropy: Compute the loss of float16 logits in float16.

    Attributes:
        lm_head: None in a part of a model, cut into stages, that does not end with it.
        pooler: The same; also None without the binary head.
        binary_head: The same.

    Raises:
        ConfigError: A needed size is missing or the sizes do not fit together.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        padded_vocab_size: int,
        recompute: RecomputeConfig | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        fp16_lm_cross_entropy: bool = False,
    ) -> None:
        super().__init__()
        spec = transformer_spec(config)
        self.spec = spec
        self.dtype = dtype
        learned = config.position_kind == "learned_absolute"
        self.max_positions = config.max_position_embeddings if learned else None
        has_order = config.bert_binary_head
        self.embedding: Embedding | None = Embedding(
            padded_vocab_size,
            spec.hidden_size,
            num_positions=self.max_positions,
            num_types=NUM_TYPES if has_order else None,
            dropout=spec.hidden_dropout,
            fused_dropout=spec.fused_dropout,
            fp32_residual=spec.fp32_residual,
            scale=math.sqrt(spec.hidden_size) if spec.scale_embeddings else None,
            dtype=dtype,
            device=device,
        )
        self.encoder = TransformerBlock(
            spec, recompute=recompute_spec(recompute), dtype=dtype, device=device
        )
        self.lm_head: LMHead | None = LMHead(
            spec, tanh_gelu=config.openai_gelu, dtype=dtype, device=device
        )
        self.output_layer: OutputLayer | None = OutputLayer(
            padded_vocab_size,
            spec.hidden_size,
            tied=not config.untie_embeddings_and_output_weights,
            bias=True,
            dtype=dtype,
            device=device,
        )
        self.pooler: Pooler | None = None
        self.binary_head: Linear | None = None
        if has_order:
            self.pooler = Pooler(spec.hidden_size, dtype=dtype, device=device)
            self.binary_head = Linear(spec.hidden_size, 2, bias=True, dtype=dtype, device=device)
        self.loss: nn.Module = TokenLoss(in_half=fp16_lm_cross_entropy)
        # The heads read single tokens, wherever they stand.
        self.join_sequence = _whole

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        types: Tensor | None = None,
        chosen: Tensor | None = None,
        labels: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> BertOutput | Tensor:
        """Logits, or losses when labels are given; hidden states from a part without the heads.

        Args:
            tokens: [B, S] int64.
            lengths: [B] integers, real tokens of each row, at least 1; None: no row is padded.
                Costs one read back to the host when it is on a device.
            types: [B, S] int64, 0 or 1; None: all 0.
            chosen: [n] int64 places in the flattened batch: only the logits of these tokens are
                computed; None: of all.
            labels: [n] or [B, S] int64.
            hidden: [B, S, H] output of the stage before, for a part without embedding.

        Raises:
            UsageError: Tokens beyond the learned positions, or inconsistent arguments.
        """
        hidden = self.encode(tokens, lengths, types=types, hidden=hidden)
        if self.lm_head is None or self.output_layer is None:
            return hidden
        order = None
        if self.pooler is not None and self.binary_head is not None:
            order = self.binary_head(self.pooler(hidden))
        if chosen is not None:
            hidden = hidden.flatten(0, 1).index_select(0, chosen)
        tied_weight = None if self.embedding is None else self.embedding.word_embeddings.weight
        logits: Tensor = self.output_layer(self.lm_head(hidden), tied_weight)
        if labels is None:
            return BertOutput(logits, order)
        losses = self.loss(logits.view(1, -1, logits.shape[-1]), labels.view(1, -1))
        return BertOutput(losses.view(labels.shape), order)

    def encode(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        types: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, S, H] behind the last layer of this part; arguments as `forward`.

        A part that does not end the model gives those of its part of the sequences.
        """
        length = tokens.shape[1]
        if self.max_positions is not None and length > self.max_positions:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the {self.max_positions} learned "
                "positions of the model (--max-position-embeddings)"
            )
        position_ids = torch.arange(length, device=tokens.device)[None]
        rotary = None
        if self.spec.rotary is not None:
            rotary = rotary_table(position_ids, self.spec.rotary, dtype=self.dtype, length=None)
        context = AttentionContext(
            rotary=rotary,
            is_causal=False,
            visible=visible_tokens(lengths, length, tokens.device),
        )
        if self.embedding is not None:
            hidden = self.embedding(tokens, position_ids, types)
        if hidden is None:
            raise UsageError("a part of a model without embedding needs hidden states")
        hidden = self.encoder(hidden, context)
        if self.has_end and self.join_sequence is not None:
            hidden = self.join_sequence(hidden)
        return hidden

    def drop_end(self) -> None:
        """Take away, in place, all heads."""
        super().drop_end()
        self.lm_head = None
        self.pooler = None
        self.binary_head = None


def _whole(hidden: Tensor) -> Tensor:
    return hidden
