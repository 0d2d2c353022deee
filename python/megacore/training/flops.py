"""Floating-point operations of a dense GPT.

B sequences of a batch, S sequence length, L layers, h hidden size, n heads, g query groups,
d head width, f feed-forward width, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.models.config import ModelConfig, RecomputeConfig

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that operation and memory counts depend on."""

    layers: int
    hidden: int
    heads: int
    groups: int
    head_width: int
    ffn: int
    gated: bool
    untied: bool
    padded_vocab: int
    seq_length: int

    @classmethod
    def of(cls, model: ModelConfig, *, padded_vocab: int, seq_length: int) -> ModelShape:
        """The shape of a resolved model configuration."""
        layers, hidden = int(model.num_layers or 0), int(model.hidden_size or 0)
        heads = int(model.num_attention_heads or 1)
        return cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            groups=model.num_query_groups if model.group_query_attention else heads,
            head_width=model.kv_channels or hidden // heads,
            ffn=model.ffn_hidden_size or 4 * hidden,
            gated=model.gated,
            untied=model.untie_embeddings_and_output_weights,
            padded_vocab=padded_vocab,
            seq_length=seq_length,
        )

    @property
    def query_ratio(self) -> float:
        """d*n/h: width of all heads over the hidden size."""
        return self.head_width * self.heads / self.hidden

    @property
    def ffn_ratio(self) -> float:
        """f/h, half as much again for a gated MLP (three matrices instead of two)."""
        return self.ffn / self.hidden * (1.5 if self.gated else 1.0)


def training_flops(shape: ModelShape, batch_size: int, *, causal: bool = False) -> float:
    """Operations of one iteration: forward plus twice as many backward, no recompute.

    12 B S L h^2 [ (1 + g/n + S/h) d n/h + f/h (1.5 if gated) + V/(2 L h) ]

    Args:
        shape: The model.
        batch_size: B, sequences of the iteration.
        causal: Count only the half of the attention matrix below the diagonal. The established
            convention (and the throughput of the log line) counts it in full.
    """
    attention = shape.seq_length / shape.hidden * (0.5 if causal else 1.0)
    bracket = (
        (1 + shape.groups / shape.heads + attention) * shape.query_ratio
        + shape.ffn_ratio
        + shape.padded_vocab / (2 * shape.layers * shape.hidden)
    )
    tokens = batch_size * shape.seq_length
    return 12.0 * tokens * shape.layers * shape.hidden**2 * bracket


def recompute_flops(shape: ModelShape, batch_size: int, recompute: RecomputeConfig) -> float:
    """Operations that recompute adds to `training_flops` (attention counted in full).

    Selective recompute repeats the forward of core attention, full recompute that of the whole
    layers it covers; a forward is a third of what the formula counts.
    """
    granularity = recompute.recompute_granularity
    if granularity is None and recompute.recompute_activations:
        granularity = "selective"
    if granularity is None:
        return 0.0
    attention = shape.seq_length / shape.hidden
    forward_unit = 4.0 * batch_size * shape.seq_length * shape.hidden**2
    if granularity == "selective":
        return forward_unit * shape.layers * attention * shape.query_ratio
    layers = shape.layers
    if recompute.recompute_method == "block":
        layers = min(layers, recompute.recompute_num_layers or layers)
    per_layer = (1 + shape.groups / shape.heads + attention) * shape.query_ratio + shape.ffn_ratio
    return forward_unit * layers * per_layer
