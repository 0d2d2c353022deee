"""Floating-point operations of dense transformers.

B sequences of a batch, S sequence length, L layers, h hidden size, n heads, g query groups,
d head width, f feed-forward width, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.models.config import ModelConfig, RecomputeConfig

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that operation and memory counts depend on.

    Attributes:
        layers: L.
        hidden: h.
        heads: n.
        groups: g.
        head_width: d.
        ffn: f.
        gated: The MLP has three matrices instead of two.
        untied: The output layer has a matrix of its own.
        padded_vocab: V.
        seq_length: S.
        bidirectional: Every token sees all others: attention has no half that is not needed.
    """

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
    bidirectional: bool = False

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
            bidirectional=model.model_family == "bert",
        )

    @property
    def query_ratio(self) -> float:
        """d*n/h: width of all heads over the hidden size."""
        return self.head_width * self.heads / self.hidden

    @property
    def ffn_ratio(self) -> float:
        """f/h, half as much again for a gated MLP (three matrices instead of two)."""
        return self.ffn / self.hidden * (1.5 if self.gated else 1.0)

    @property
    def formula(self) -> str:
        """What `training_flops` counts, in words."""
        return "12 B S L h^2 [(1 + g/n + S/h) d n/h + f/h (1.5 if gated) + V/(2 L h)]"

    @property
    def all_layers(self) -> int:
        """Layers of all stacks."""
        return self.layers

    @property
    def cross_parameters(self) -> float:
        """Parameters of the attention of one stack to another."""
        return 0.0

    def layer_units(self, *, causal: bool) -> float:
        """Operations of all layers for one sequence, forward and backward, over 12 h^2."""
        share = 0.5 if causal and not self.bidirectional else 1.0
        return self.seq_length * self.layers * self.per_token(self.seq_length * share)

    def per_token(self, keys: float) -> float:
        """Those of one layer for one token that sees so many keys."""
        attention = 1 + self.groups / self.heads + keys / self.hidden
        return attention * self.query_ratio + self.ffn_ratio

    @property
    def core_units(self) -> float:
        """Those of core attention alone, in full."""
        return self.seq_length * self.layers * self.seq_length / self.hidden * self.query_ratio

    @property
    def output_units(self) -> float:
        """Those of the output layer."""
        return self.seq_length * self.padded_vocab / (2 * self.hidden)


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderShape(ModelShape):
    """A decoder beside the encoder that the other numbers describe.

    Attributes:
        decoder_layers: Ld.
        decoder_length: Sd.
    """

    decoder_layers: int
    decoder_length: int

    @property
    def formula(self) -> str:
        """What `training_flops` counts, in words."""
        return (
            "12 B h^2 {S L [(1 + g/n + S/h) d n/h + f/h (1.5 if gated)] + Sd Ld [the same with Sd "
            "+ (1 + S/h) d n/h] + S Ld d g/h + Sd V/(2 h)}"
        )

    @property
    def all_layers(self) -> int:
        """Layers of all stacks."""
        return self.layers + self.decoder_layers

    @property
    def cross_parameters(self) -> float:
        """Parameters of the attention of one stack to another."""
        per_layer = 2 * self.hidden**2 * (1 + self.groups / self.heads) * self.query_ratio
        return self.decoder_layers * per_layer

    def layer_units(self, *, causal: bool) -> float:
        """See `ModelShape`; attention to the encoder has its keys and values computed there."""
        own = self.decoder_length * (0.5 if causal else 1.0)
        decoder = self.per_token(own) + (1 + self.seq_length / self.hidden) * self.query_ratio
        keys = self.seq_length * self.groups / self.heads * self.query_ratio
        return self.decoder_layers * (self.decoder_length * decoder + keys) + (
            self.seq_length * self.layers * self.per_token(self.seq_length)
        )

    @property
    def core_units(self) -> float:
        """See `ModelShape`."""
        seen = self.decoder_length * (self.decoder_length + self.seq_length)
        total = self.layers * self.seq_length**2 + self.decoder_layers * seen
        return total / self.hidden * self.query_ratio

    @property
    def output_units(self) -> float:
        """See `ModelShape`."""
        return self.decoder_length * self.padded_vocab / (2 * self.hidden)


def training_flops(shape: ModelShape, batch_size: int, *, causal: bool = False) -> float:
    """Operations of one iteration: forward plus twice as many backward, no recompute.

    12 B S L h^2 [ (1 + g/n + S/h) d n/h + f/h (1.5 if gated) + V/(2 L h) ] of one stack; see
    `EncoderDecoderShape` for two.

    Args:
        shape: The model.
        batch_size: B, sequences of the iteration.
        causal: Count only the half of the attention matrix below the diagonal. The established
            convention (and the throughput of the log line) counts it in full.
    """
    units = shape.layer_units(causal=causal) + shape.output_units
    return 12.0 * batch_size * shape.hidden**2 * units


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
    forward_unit = 4.0 * batch_size * shape.hidden**2
    if granularity == "selective":
        return forward_unit * shape.core_units
    share = 1.0
    if recompute.recompute_method == "block":
        layers = min(shape.layers, recompute.recompute_num_layers or shape.layers)
        share = layers / shape.layers
    return forward_unit * share * shape.layer_units(causal=False)
