"""Small random Llama models of transformers, and their weights in the order of Meta and GGUF."""

from __future__ import annotations

import torch

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def random_llama(*, seed: int = 0, **changes):
    """A transformers Llama whose weights are all random, norms included, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {
        "vocab_size": 67,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    model = LlamaForCausalLM(LlamaConfig(**{**values, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise / 8 if "norm" in name else noise / 7)
    return model


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of every head reordered from halves to neighbouring pairs, row by row."""
    width = weight.shape[0] // heads
    order = [
        head * width + half * width // 2 + i
        for head in range(heads)
        for i in range(width // 2)
        for half in range(2)
    ]
    return weight[order]


# Module of transformers -> (name in GGUF, name in Meta's files); {} is the number of the layer.
LAYER_NAMES = {
    "input_layernorm": ("blk.{}.attn_norm", "layers.{}.attention_norm"),
    "self_attn.q_proj": ("blk.{}.attn_q", "layers.{}.attention.wq"),
    "self_attn.k_proj": ("blk.{}.attn_k", "layers.{}.attention.wk"),
    "self_attn.v_proj": ("blk.{}.attn_v", "layers.{}.attention.wv"),
    "self_attn.o_proj": ("blk.{}.attn_output", "layers.{}.attention.wo"),
    "post_attention_layernorm": ("blk.{}.ffn_norm", "layers.{}.ffn_norm"),
    "mlp.gate_proj": ("blk.{}.ffn_gate", "layers.{}.feed_forward.w1"),
    "mlp.up_proj": ("blk.{}.ffn_up", "layers.{}.feed_forward.w3"),
    "mlp.down_proj": ("blk.{}.ffn_down", "layers.{}.feed_forward.w2"),
}
OTHER_NAMES = {
    "model.embed_tokens": ("token_embd", "tok_embeddings"),
    "model.norm": ("output_norm", "norm"),
    "lm_head": ("output", "output"),
}


def renamed(model, which: int) -> dict[str, torch.Tensor]:
    """Weights under the names of GGUF (0) or Meta (1), rotation of neighbours."""
    config, result = model.config, {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if module in OTHER_NAMES:
            result[f"{OTHER_NAMES[module][which]}.{kind}"] = parameter.detach()
            continue
        layer, _, part = module.removeprefix("model.layers.").partition(".")
        value = parameter.detach()
        if part.split(".")[-1] in heads:
            value = neighbours(value, heads[part.split(".")[-1]])
        result[f"{LAYER_NAMES[part][which].format(layer)}.{kind}"] = value
    return result


def peer_logits(model, tokens) -> torch.Tensor:
    """Logits in float64."""
    with torch.no_grad():
        return model.double()(tokens).logits
