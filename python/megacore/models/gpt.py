"""GPT: a decoder-only language model with every dense architecture choice of `ModelConfig`."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from megacore.errors import UsageError
from megacore.layers.attention import AttentionContext
from megacore.layers.cross_entropy import LinearTokenLoss, TokenLoss
from megacore.layers.embedding import Embedding
from megacore.layers.kv_cache import KVCache
from megacore.layers.rotary import RotaryTable, rotary_table
from megacore.layers.spec import RotarySpec
from megacore.layers.transformer import TransformerBlock
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.resolve import recompute_spec, transformer_spec
from megacore.models.staged import OutputLayer, StagedModel


class GPTModel(StagedModel):
    """A decoder-only transformer.

    Parameters are uninitialised until `models.initialization.init_weights` or a checkpoint fills
    them. Their names and shapes are those of Megatron-Core's GPT.

    Args:
        config: Architecture; derived defaults are filled in.
        padded_vocab_size: Rows of the word embedding.
        recompute: Which activations are recomputed in backward; None keeps all.
        dtype: Dtype of every parameter and, but for the residual stream with
            `fp32_residual_connection`, of the activations.
        device: Device of the parameters ("meta" for a model without memory).
        fp16_lm_cross_entropy: Compute the loss of float16 logits in float16.

    Attributes:
        embedding: None in a part of a model, cut into stages, that does not begin with it.
        output_layer: None in a part that does not end with it; such a part returns hidden states.

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
        self.padded_vocab_size = padded_vocab_size
        # A learned table limits the length; other kinds of position do not.
        learned = config.position_embedding_type == "learned_absolute" and spec.rotary is None
        self.max_positions = config.max_position_embeddings if learned else None
        self.embedding: Embedding | None = Embedding(
            padded_vocab_size,
            spec.hidden_size,
            num_positions=self.max_positions,
            dropout=spec.hidden_dropout,
            fp32_residual=spec.fp32_residual,
            fused_dropout=spec.fused_dropout,
            scale=math.sqrt(spec.hidden_size) if spec.scale_embeddings else None,
            dtype=dtype,
            device=device,
        )
        self.decoder = TransformerBlock(
            spec, recompute=recompute_spec(recompute), dtype=dtype, device=device
        )
        self.output_layer: OutputLayer | None = OutputLayer(
            padded_vocab_size,
            spec.hidden_size,
            tied=not config.untie_embeddings_and_output_weights,
            dtype=dtype,
            device=device,
        )
        self.loss: nn.Module = TokenLoss(in_half=fp16_lm_cross_entropy)
        if config.cross_entropy_fusion_impl == "linear":
            self.linear_loss = LinearTokenLoss()

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: KVCache | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Logits, or losses when labels are given; hidden states from a part without output layer.

        Args:
            tokens: [B, S] int64.
            position_ids: [B, S] or [1, S] int64; default 0 to S - 1, or the positions behind
                the tokens in `cache`.
            labels: [B, S] int64.
            cu_seqlens: [n + 1] int32, ends of packed documents in the flattened batch, from 0 to
                B * S; attention stays inside a document. Costs one read back to the host.
            cache: Earlier keys and values; the new ones are added, the caller advances it.
            hidden: [B, S, H] output of the stage before, for a part without embedding.

        Returns:
            Logits [B, S, V] in the model's dtype, or the loss of every token [B, S] in float32.

        Raises:
            UsageError: Tokens beyond the learned positions, or inconsistent arguments.
        """
        hidden = self._hidden(tokens, position_ids, cu_seqlens, cache, hidden)
        if self.output_layer is None:
            return hidden
        losses: Tensor
        if labels is not None and self.linear_loss is not None:
            losses = self.linear_loss(hidden, self._output_weight(), labels)
            return losses
        logits = self._logits(hidden)
        if labels is None:
            return logits
        losses = self.loss(logits, labels)
        return losses

    def last_logits(self, tokens: Tensor, last: Tensor, *, cache: KVCache) -> Tensor:
        """Logits [B, V] behind token `last[b]` of each row, without those of the other tokens.

        Args:
            tokens: [B, S] int64, appended to `cache`.
            last: [B] int64, each in [0, S).
            cache: Earlier keys and values.
        """
        hidden = self._hidden(tokens, None, None, cache, None)
        return self._logits(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """What the output layer sees of whole sequences: [B, S, H] for `tokens` [B, S] int64."""
        return self._hidden(tokens, None, None, None, None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]."""
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        assert self.output_layer is not None
        tied_weight = None if self.embedding is None else self.embedding.word_embeddings.weight
        logits: Tensor = self.output_layer(hidden, tied_weight)
        cap = self.spec.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _output_weight(self) -> Tensor:
        assert self.output_layer is not None
        weight = self.output_layer.weight
        if weight is None:
            assert self.embedding is not None
            weight = self.embedding.word_embeddings.weight
        return weight

    def _hidden(
        self,
        tokens: Tensor,
        position_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        cache: KVCache | None,
        hidden: Tensor | None,
    ) -> Tensor:
        length = tokens.shape[1]
        cache_positions = None
        if cache is not None:
            positions = cache.positions(length)
            self._check_length(cache.longest + length)
            if position_ids is None:
                position_ids = positions[:1] if cache.equal_lengths else positions
            if not cache.empty and not (cache.equal_lengths and length == 1):
                cache_positions = positions
        elif position_ids is None:
            self._check_length(length)
            position_ids = torch.arange(length, device=tokens.device)[None]
        document_lengths = None
        if cu_seqlens is not None:
            if cache is not None:
                raise UsageError("packed documents (cu_seqlens) cannot be used with a cache")
            document_lengths = _document_lengths(cu_seqlens)
        # A sequence that is being generated keeps the angles of its final length.
        final = None if cache is None else cache.capacity
        context = AttentionContext(
            rotary=self._angles(self.spec.rotary, position_ids, final),
            local_rotary=self._angles(self.spec.local_rotary, position_ids, final),
            document_lengths=document_lengths,
            cache=cache,
            cache_positions=cache_positions,
        )
        if self.embedding is not None:
            hidden = self.embedding(tokens, position_ids)
        if hidden is None:
            raise UsageError("a part of a model without embedding needs hidden states")
        output: Tensor = self.decoder(hidden, context)
        return output

    def _angles(
        self, spec: RotarySpec | None, position_ids: Tensor, length: int | None
    ) -> RotaryTable | None:
        if spec is None:
            return None
        return rotary_table(position_ids, spec, dtype=self.dtype, length=length)

    def _check_length(self, length: int) -> None:
        if self.max_positions is not None and length > self.max_positions:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the {self.max_positions} learned "
                "positions of the model (--max-position-embeddings)"
            )


def _document_lengths(cu_seqlens: Tensor) -> tuple[int, ...]:
    ends: list[int] = cu_seqlens.tolist()
    if len(ends) < 2 or ends[0] != 0:
        raise UsageError(f"cu_seqlens must run from 0 to the tokens of the batch, found {ends[:2]}")
    lengths = tuple(last - first for first, last in itertools.pairwise(ends))
    if min(lengths) < 0:
        raise UsageError("cu_seqlens must not decrease")
    return lengths
