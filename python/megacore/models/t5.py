"""T5: an encoder, and a decoder that attends to it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from megacore.errors import UsageError
from megacore.layers.attention import AttentionContext
from megacore.layers.cross_entropy import TokenLoss
from megacore.layers.embedding import Embedding
from megacore.layers.relative_bias import RelativePositionBias
from megacore.layers.rotary import RotaryTable, rotary_table
from megacore.layers.transformer import TransformerBlock
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.padding import visible_tokens
from megacore.models.resolve import recompute_spec, transformer_spec
from megacore.models.staged import OutputLayer, StagedModel


class T5Head(nn.Module):
    """The output layer, under the name that checkpoints have.

    Args:
        output_layer: Computes the logits.
        scale: Factor of the hidden states before it.
    """

    def __init__(self, output_layer: OutputLayer, *, scale: float) -> None:
        super().__init__()
        self.output_layer = output_layer
        self.scale = scale

    def forward(self, hidden: Tensor, tied_weight: Tensor | None) -> Tensor:
        """Logits [..., V] of `hidden` [..., H]; see `OutputLayer`."""
        scaled = hidden if self.scale == 1.0 else hidden * self.scale
        logits: Tensor = self.output_layer(scaled, tied_weight)
        return logits


class T5Model(StagedModel):
    """An encoder-decoder whose two stacks share the word embedding.

    Positions are a learned table that both stacks share, rotary, or relative biases of which each
    stack has its own. The attention of the decoder to the encoder knows no positions.

    Parameters are uninitialised until `models.initialization.init_weights` or a checkpoint fills
    them. Their names and shapes are those of Megatron-Core's T5.

    A part of a model that was cut into stages takes and returns the hidden states of both stacks
    one behind the other, [B, Se + Sd, H]: those of the decoder wait as embeddings while the encoder
    runs, and those of the encoder go along for the decoder to attend to.

    Args:
        config: Architecture; derived defaults are filled in.
        padded_vocab_size: Rows of the word embedding.
        recompute: Which activations are recomputed in backward; None keeps all.
        dtype: Dtype of every parameter and, but for the residual stream with
            `fp32_residual_connection`, of the activations.
        device: Device of the parameters ("meta" for a model without memory).
        fp16_lm_cross_entropy: Compute the loss of float16 logits in float16.

    Attributes:
        encoder_relative_pos_emb: Biases of the encoder; None without relative positions.
        decoder_relative_pos_emb: Those of the decoder.
        lm_head: None in a part that does not end the model.

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
        config = config.resolved()
        spec = transformer_spec(config)
        self.spec = spec
        self.dtype = dtype
        kind = config.position_embedding_type
        self.max_positions = config.max_position_embeddings if kind == "learned_absolute" else None
        self.embedding: Embedding | None = Embedding(
            padded_vocab_size,
            spec.hidden_size,
            num_positions=self.max_positions,
            dropout=spec.hidden_dropout,
            fused_dropout=spec.fused_dropout,
            fp32_residual=spec.fp32_residual,
            scale=math.sqrt(spec.hidden_size) if spec.scale_embeddings else None,
            dtype=dtype,
            device=device,
        )
        self.encoder_relative_pos_emb: RelativePositionBias | None = None
        self.decoder_relative_pos_emb: RelativePositionBias | None = None
        if kind == "relative":
            for name, bidirectional in (("encoder", True), ("decoder", False)):
                bias = RelativePositionBias(
                    spec.num_heads,
                    num_buckets=config.relative_attention_num_buckets,
                    max_distance=config.relative_attention_max_distance,
                    bidirectional=bidirectional,
                    dtype=dtype,
                    device=device,
                )
                setattr(self, f"{name}_relative_pos_emb", bias)
        again = recompute_spec(recompute)
        self.encoder = TransformerBlock(spec, recompute=again, dtype=dtype, device=device)
        assert config.decoder_num_layers is not None  # resolved() has filled it
        self.decoder = TransformerBlock(
            replace(spec, num_layers=config.decoder_num_layers),
            recompute=again,
            attends_encoder=True,
            dtype=dtype,
            device=device,
        )
        tied = not config.untie_embeddings_and_output_weights
        output = OutputLayer(
            padded_vocab_size,
            spec.hidden_size,
            tied=tied,
            bias=tied and config.lm_head_bias,
            dtype=dtype,
            device=device,
        )
        scale = spec.hidden_size**-0.5 if config.scale_tied_output else 1.0
        # First under the name of the head: parameters have the first name of their module.
        self.lm_head: T5Head | None = T5Head(output, scale=scale)
        self.output_layer: OutputLayer | None = output
        self.loss: nn.Module = TokenLoss(in_half=fp16_lm_cross_entropy)

    def forward(
        self,
        encoder_tokens: Tensor,
        decoder_tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Logits, or losses when labels are given; hidden states from a part without the head.

        A token of the decoder sees those before it and itself, so padding behind the real tokens
        of a row needs no lengths there.

        Args:
            encoder_tokens: [B, Se] int64.
            decoder_tokens: [B, Sd] int64.
            lengths: [B] integers, real tokens of each row of the encoder, at least 1; None: no row
                is padded. Costs one read back to the host when it is on a device.
            labels: [B, Sd] int64.
            hidden: [B, Se + Sd, H] output of the stage before, for a part without embedding.

        Returns:
            Logits [B, Sd, V] in the model's dtype, or the loss of every token [B, Sd] in float32.

        Raises:
            UsageError: Tokens beyond the learned positions, or inconsistent arguments.
        """
        sizes = (encoder_tokens.shape[1], decoder_tokens.shape[1])
        if self.max_positions is not None and max(sizes) > self.max_positions:
            raise UsageError(
                f"a sequence of {max(sizes)} tokens is longer than the {self.max_positions} "
                "learned positions of the model (--max-position-embeddings)"
            )
        device = encoder_tokens.device
        positions = [torch.arange(size, device=device)[None] for size in sizes]
        if self.embedding is not None:
            encoded = self.embedding(encoder_tokens, positions[0])
            decoded = self.embedding(decoder_tokens, positions[1])
        elif hidden is not None:
            # A process may have a part of each of the two sequences.
            first = hidden.shape[1] * sizes[0] // sum(sizes)
            encoded, decoded = hidden[:, :first], hidden[:, first:]
        else:
            raise UsageError("a part of a model without embedding needs hidden states")
        visible = visible_tokens(lengths, sizes[0], device)
        encoded = self._encode(encoded, positions[0], visible)
        decoded = self._decode(decoded, positions[1], encoded, visible)
        if self.lm_head is None:
            return torch.cat([encoded, decoded], dim=1)
        tied_weight = None if self.embedding is None else self.embedding.word_embeddings.weight
        logits: Tensor = self.lm_head(decoded, tied_weight)
        if labels is None:
            return logits
        losses: Tensor = self.loss(logits, labels)
        return losses

    def _encode(self, hidden: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
        if not self.encoder.layers:
            return hidden
        relative = self.encoder_relative_pos_emb
        context = AttentionContext(
            rotary=self._angles(positions),
            is_causal=False,
            visible=visible,
            bias=None if relative is None else relative(positions.shape[1]),
        )
        output: Tensor = self.encoder(hidden, context)
        return output

    def _decode(
        self, hidden: Tensor, positions: Tensor, encoded: Tensor, visible: Tensor | None
    ) -> Tensor:
        if not self.decoder.layers and self.decoder.final_layernorm is None:
            return hidden
        relative = self.decoder_relative_pos_emb
        context = AttentionContext(
            rotary=self._angles(positions),
            bias=None if relative is None else relative(positions.shape[1]),
            encoded=encoded,
            encoded_visible=visible,
        )
        output: Tensor = self.decoder(hidden, context)
        return output

    def _angles(self, positions: Tensor) -> RotaryTable | None:
        if self.spec.rotary is None:
            return None
        return rotary_table(positions, self.spec.rotary, dtype=self.dtype)

    def drop_end(self) -> None:
        """Take away, in place, the head."""
        super().drop_end()
        self.lm_head = None
