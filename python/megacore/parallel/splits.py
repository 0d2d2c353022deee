"""The table of tensor parallelism: what happens to each layer of each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["column", "row", "vocabulary", "positions", "tokens", "heads", "head table"]
"""What happens to a layer.

column: each process has some of the outputs (rows of the weight).
row: each process has some of the inputs (columns of the weight); the bias is whole.
vocabulary: each process has some rows of the word embedding.
positions: whole table; a process looks up the positions of its tokens.
tokens: whole parameters that work on the residual stream (norms, the halves of adapters there).
heads: whole parameters that work on each head (norms of queries and keys).
head table: a table with a column for every head; each process has those of its heads.
"""


@dataclass(frozen=True, kw_only=True)
class LayerSplit:
    """One row of a table of splits.

    Attributes:
        layers: Pattern of the names of modules that have parameters; "*" is any text.
        split: What happens to them.
        gated: The outputs are two halves that belong together, when the model's MLP is gated.
    """

    layers: str
    split: Split
    gated: bool = False


SPLITS = (
    LayerSplit(layers="embedding.word_embeddings", split="vocabulary"),
    LayerSplit(layers="embedding.position_embeddings", split="positions"),
    LayerSplit(layers="embedding.tokentype_embeddings", split="positions"),
    LayerSplit(layers="*coder_relative_pos_emb.relative_attention_bias", split="head table"),
    LayerSplit(layers="*coder.layers.*.self_attention.linear_qkv", split="column"),
    LayerSplit(layers="*coder.layers.*.self_attention.[qk]_layernorm", split="heads"),
    LayerSplit(layers="*coder.layers.*.self_attention.linear_proj", split="row"),
    LayerSplit(layers="*coder.layers.*.pre_cross_attn_layernorm", split="tokens"),
    LayerSplit(layers="*coder.layers.*.cross_attention.linear_q", split="column"),
    LayerSplit(layers="*coder.layers.*.cross_attention.linear_kv", split="column"),
    LayerSplit(layers="*coder.layers.*.cross_attention.[qk]_layernorm", split="heads"),
    LayerSplit(layers="*coder.layers.*.cross_attention.linear_proj", split="row"),
    LayerSplit(layers="*coder.layers.*.mlp.linear_fc1", split="column", gated=True),
    LayerSplit(layers="*coder.layers.*.mlp.linear_fc2", split="row"),
    # The narrow side between the halves of an adapter is whole, like the residual stream.
    LayerSplit(layers="*coder.layers.*.linear_qkv.adapter.linear_in", split="tokens"),
    LayerSplit(layers="*coder.layers.*.linear_qkv.adapter.linear_out", split="column"),
    LayerSplit(layers="*coder.layers.*.linear_proj.adapter.linear_in", split="row"),
    LayerSplit(layers="*coder.layers.*.linear_proj.adapter.linear_out", split="tokens"),
    LayerSplit(layers="*coder.layers.*.linear_fc1.adapter.linear_in", split="tokens"),
    LayerSplit(layers="*coder.layers.*.linear_fc1.adapter.linear_out", split="column", gated=True),
    LayerSplit(layers="*coder.layers.*.linear_fc2.adapter.linear_in", split="row"),
    LayerSplit(layers="*coder.layers.*.linear_fc2.adapter.linear_out", split="tokens"),
    LayerSplit(layers="*coder.layers.*.post_*_layernorm", split="tokens"),
    LayerSplit(layers="*coder.final_layernorm", split="tokens"),
    LayerSplit(layers="*output_layer", split="column"),
    # The other parts behind the last layer are small: every process has them.
    LayerSplit(layers="lm_head.*", split="tokens"),
    LayerSplit(layers="pooler.dense", split="tokens"),
    LayerSplit(layers="*_head", split="tokens"),
    # Towers of two encoders, which are not divided.
    LayerSplit(layers="*_model.*", split="tokens"),
)
