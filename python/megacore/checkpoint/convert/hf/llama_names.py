"""What the relatives of Llama have in common: names of sizes and of tensors."""

from __future__ import annotations

from megacore.checkpoint.convert.hf.rules import Row, row, rows

LLAMA_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
}

_OURS, _THEIRS = "decoder.layers.{i}.", "model.layers.{i}."
_QKV = f"{_OURS}self_attention.linear_qkv."
_FC1 = f"{_OURS}mlp.linear_fc1."


def llama_table(
    *,
    fused: bool = False,
    mlp_norm: str = "post_attention_layernorm",
    after: tuple[str, str] | None = None,
) -> list[Row]:
    """The table of Llama and its relatives; rows of tensors that a model does not have are unused.

    Args:
        fused: Queries, keys and values are one tensor, and so are gate and value (Phi-3).
        mlp_norm: Name of the norm in front of the MLP.
        after: Names of the norms behind attention and MLP, if there are any.
    """
    attention, mlp = f"{_THEIRS}self_attn.", f"{_THEIRS}mlp."
    table = [
        row("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        row(f"{_QKV}layer_norm_weight", f"{_THEIRS}input_layernorm.weight"),
        row(f"{_FC1}layer_norm_weight", f"{_THEIRS}{mlp_norm}.weight"),
        *rows(f"{_OURS}self_attention.linear_proj.", f"{attention}o_proj."),
        *rows(f"{_OURS}mlp.linear_fc2.", f"{mlp}down_proj."),
        row(f"{_OURS}self_attention.q_layernorm.weight", f"{attention}q_norm.weight"),
        row(f"{_OURS}self_attention.k_layernorm.weight", f"{attention}k_norm.weight"),
        row("decoder.final_layernorm.weight", "model.norm.weight"),
        row("output_layer.weight", "lm_head.weight"),
    ]
    if fused:
        table += rows(_QKV, f"{attention}qkv_proj.", kind="stacked_qkv")
        table += rows(_FC1, f"{mlp}gate_up_proj.")
    else:
        table += rows(_QKV, *(f"{attention}{part}_proj." for part in "qkv"), kind="qkv")
        table += rows(_FC1, f"{mlp}gate_proj.", f"{mlp}up_proj.", kind="halves")
    if after is not None:
        for ours, theirs in zip(("attention", "mlp"), after, strict=True):
            table.append(row(f"{_OURS}post_{ours}_layernorm.weight", f"{_THEIRS}{theirs}.weight"))
    return table
