"""Small Hugging Face models of awkward sizes, of every family, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

VOCAB, LENGTH, POSITIONS = 101, 37, 64
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GEMMA = COMMON | {"query_pre_attn_scalar": 10, "sliding_window": 7, "pad_token_id": 0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 16,
}


def _longrope(original: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0 + 0.1 * i for i in range(3)],
        "long_factor": [2.0 + 0.5 * i for i in range(3)],
        "original_max_position_embeddings": original,
    }


# Phi-3 and GPT-NeoX have heads of hidden size / heads; GPT-2 has its own names.
PHI3 = {name: value for name, value in COMMON.items() if name != "head_dim"} | {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "resid_pdrop": 0.0,
    "pad_token_id": 0,
}
NEOX = {
    name: value for name, value in COMMON.items() if name not in ("head_dim", "num_key_value_heads")
} | {"hidden_size": 60, "num_attention_heads": 6}
GPT2 = {
    "vocab_size": VOCAB,
    "n_positions": POSITIONS,
    "n_embd": 60,
    "n_layer": 3,
    "n_head": 6,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Name of the case -> class of transformers without "Config", and the values of its configuration.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied-erf": (
        "GPT2",
        GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 77},
    ),
    "llama": ("Llama", COMMON),
    "llama-biases-tied": (
        "Llama",
        COMMON | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-3.1": ("Llama", COMMON | {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "Llama",
        COMMON | {"rope_parameters": {"rope_type": "linear", "rope_theta": 7000, "factor": 2.5}},
    ),
    "llama-yarn": ("Llama", COMMON | {"rope_parameters": YARN}),
    "mistral-window": ("Mistral", COMMON | {"sliding_window": 5}),
    "mistral": ("Mistral", COMMON | {"sliding_window": None, "num_key_value_heads": 8}),
    "qwen2": ("Qwen2", COMMON),
    "qwen2-windows": (
        "Qwen2",
        COMMON
        | {
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3", COMMON | {"tie_word_embeddings": True}),
    "qwen3-yarn": ("Qwen3", COMMON | {"rope_parameters": YARN}),
    "gemma": ("Gemma", COMMON | {"pad_token_id": 0}),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3Text", GEMMA | {"num_hidden_layers": 7}),
    "gemma3-linear-cap": (
        "Gemma3Text",
        GEMMA
        | {
            "final_logit_softcapping": 2.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "phi3": ("Phi3", PHI3),
    "phi3-window-partial": (
        "Phi3",
        PHI3
        | {
            "sliding_window": 9,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "phi3-longrope-short": (
        "Phi3",
        PHI3 | {"rope_parameters": _longrope(40), "original_max_position_embeddings": 40},
    ),
    "phi3-longrope-long": (
        "Phi3",
        PHI3 | {"rope_parameters": _longrope(30), "original_max_position_embeddings": 30},
    ),
    "gpt-neox": ("GPTNeoX", NEOX),
    "gpt-neox-sequential": (
        "GPTNeoX",
        NEOX
        | {
            "use_parallel_residual": False,
            "hidden_act": "gelu_new",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.4,
            },
        },
    ),
}


def hf_model(name: str, *, seed: int = 7) -> transformers.PreTrainedModel:
    """The model of a case, all weights, norms and biases random."""
    kind, settings = CASES[name]
    # The explicit formulation: others leave the caps of Gemma 2 out.
    config = getattr(transformers, f"{kind}Config")(**settings, attn_implementation="eager")
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    make: Callable[..., Any] = getattr(transformers, kind.removesuffix("Text") + suffix)
    model = make(config)
    generator = torch.Generator().manual_seed(seed)
    zero_centered = kind.startswith("Gemma")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = parameter.dim() == 1 and parameter_name.endswith("weight")
            center = 1.0 if is_norm_weight and not zero_centered else 0.0
            parameter.copy_(center + 0.15 * noise)
    return model.eval()


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 3) -> torch.Tensor:
    """Random tokens [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, length), generator=generator)
