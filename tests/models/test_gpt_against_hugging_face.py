"""Same weights, same numbers: logits and every gradient, within twice PyTorch's own error."""

import collections
import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.testing.hf_weights import from_gpt2, from_gpt_neox, from_llama
from megacore.testing.tolerance import expect_close, rms_error, twice_torch_error

HIDDEN, HEADS, LAYERS, VOCAB, BATCH, LENGTH = 60, 3, 2, 101, 3, 17
COMMON = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS}
COMMON |= {"vocab_size": VOCAB, "max_position_embeddings": 32, "use_cache": False}
COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
OURS = {"num_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS}
OURS |= {"max_position_embeddings": 32, "attention_dropout": 0.0, "hidden_dropout": 0.0}
LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
}


def _gpt2(**changes):
    settings = {
        "vocab_size": VOCAB,
        "n_positions": 32,
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
    }
    settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    settings |= {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings | changes))


def _hf(name, **changes):
    config = getattr(transformers, name + "Config")(**COMMON | changes)
    return getattr(transformers, name + "ForCausalLM")(config)


def _untied(**changes):
    return dict(OURS, untie_embeddings_and_output_weights=True, **changes)


# name: (the Hugging Face model, mapping of its weights, our configuration)
CASES = {
    "gpt2": lambda: (_gpt2(), from_gpt2, OURS),
    "gpt2-untied-erf": lambda: (
        _gpt2(tie_word_embeddings=False, activation_function="gelu", n_inner=77),
        from_gpt2,
        _untied(bias_gelu_fusion=False, ffn_hidden_size=77),
    ),
    "llama": lambda: (
        _hf("Llama", intermediate_size=44, rms_norm_eps=1e-5, tie_word_embeddings=True),
        from_llama,
        dict(OURS, **LLAMA, ffn_hidden_size=44),
    ),
    "llama-untied-gqa-bias": lambda: (
        _hf(
            "Llama",
            intermediate_size=44,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            num_attention_heads=6,
            num_key_value_heads=2,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        from_llama,
        _untied(
            **LLAMA
            | {
                "add_bias_linear": True,
                "ffn_hidden_size": 44,
                "norm_epsilon": 1e-6,
                "rotary_base": 500,
            }
            | {"num_query_groups": 2, "group_query_attention": True}
        )
        | {"num_attention_heads": 6},
    ),
    "llama-interpolated-positions": lambda: (
        _hf(
            "Llama",
            intermediate_size=44,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        ),
        from_llama,
        dict(OURS, **LLAMA, ffn_hidden_size=44, rotary_seq_len_interpolation_factor=4),
    ),
    "qwen3-wide-heads-qk-norm": lambda: (
        _hf(
            "Qwen3",
            intermediate_size=44,
            rms_norm_eps=1e-5,
            head_dim=10,
            num_attention_heads=6,
            num_key_value_heads=3,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        from_llama,
        _untied(**LLAMA, ffn_hidden_size=44, kv_channels=10, qk_layernorm=True)
        | {"num_attention_heads": 6, "num_query_groups": 3, "group_query_attention": True},
    ),
    "gpt-neox-partial-rotary": lambda: (
        _hf(
            "GPTNeoX",
            intermediate_size=90,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.3,
            },
            use_parallel_residual=False,
            tie_word_embeddings=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            hidden_act="gelu",
        ),
        from_gpt_neox,
        _untied(
            position_embedding_type="rope",
            rotary_percent=0.3,
            bias_gelu_fusion=False,
            ffn_hidden_size=90,
        ),
    ),
    "stablelm-qkv-bias-partial-rotary": lambda: (
        _hf(
            "StableLm",
            intermediate_size=44,
            use_qkv_bias=True,
            tie_word_embeddings=False,
            num_key_value_heads=1,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        ),
        from_llama,
        _untied(
            position_embedding_type="rope",
            rotary_percent=0.5,
            swiglu=True,
            add_bias_linear=False,
            add_qkv_bias=True,
            group_query_attention=True,
            num_query_groups=1,
            ffn_hidden_size=44,
        ),
    ),
    "ernie-interleaved-rotary": lambda: (
        _hf(
            "Ernie4_5",
            intermediate_size=44,
            rms_norm_eps=1e-5,
            head_dim=12,
            num_key_value_heads=3,
            use_bias=False,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        from_llama,
        dict(OURS, **LLAMA, ffn_hidden_size=44, kv_channels=12, rotary_interleaved=True),
    ),
    "nemotron-1p-squared-relu": lambda: (
        _hf(
            "Nemotron",
            intermediate_size=70,
            head_dim=20,
            num_key_value_heads=3,
            norm_eps=1e-5,
            attention_bias=True,
            mlp_bias=True,
            hidden_act="relu2",
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        ),
        from_llama,
        _untied(
            position_embedding_type="rope",
            rotary_percent=0.5,
            squared_relu=True,
            apply_layernorm_1p=True,
            ffn_hidden_size=70,
        ),
    ),
}


def _randomize(model, one_plus):
    """Weights away from the special values of a fresh model: norms and biases too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            center = 1.0 if is_norm_weight and not one_plus else 0.0
            parameter.copy_(center + 0.15 * noise)


def _run(forward, model, tokens, labels, weights):
    model.zero_grad()
    logits = forward(model, tokens)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    (losses * weights.flatten().to(losses.dtype)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients(name):
    torch.manual_seed(1)
    hf, mapping, settings = CASES[name]()
    hf.train()
    _randomize(hf, settings.get("apply_layernorm_1p", False))
    ours = GPTModel(ModelConfig(**settings), padded_vocab_size=VOCAB)
    state = {key: p.detach() for key, p in hf.named_parameters()}
    ours.load_state_dict(mapping(state, ours.spec), strict=True)

    def hf_forward(model, tokens):
        return model(tokens).logits

    # Errors are root mean squares over several batches: the largest error of one batch is too
    # noisy a measure for tensors of ten elements. Rotary tables made in float32 stay in float64.
    hf64 = copy.deepcopy(hf).double()
    ours_squared, torch_squared = collections.Counter(), collections.Counter()
    for _ in range(4):
        tokens, labels = torch.randint(0, VOCAB, (2, BATCH, LENGTH))
        weights = torch.rand(BATCH, LENGTH)
        low, low_grads = _run(hf_forward, hf, tokens, labels, weights)
        exact, exact_grads = _run(hf_forward, hf64, tokens, labels, weights)
        low_grads = {"logits": low, **mapping(low_grads, ours.spec)}
        exact_grads = {"logits": exact, **mapping(exact_grads, ours.spec)}

        ours.zero_grad()
        found = {"logits": ours(tokens)}
        (ours(tokens, labels=labels) * weights).sum().backward()
        found |= {key: parameter.grad for key, parameter in ours.named_parameters()}
        assert set(found) == set(exact_grads)
        expect_close(
            found["logits"], exact, bound=twice_torch_error(low, exact), name=f"{name} logits"
        )
        for key, value in found.items():
            ours_squared[key] += rms_error(value, exact_grads[key]) ** 2
            torch_squared[key] += rms_error(low_grads[key], exact_grads[key]) ** 2
    too_large = {
        key: f"{(ours_squared[key] / torch_squared[key]) ** 0.5:.2f} x PyTorch's error"
        for key in ours_squared
        if ours_squared[key] > 4 * torch_squared[key]
    }
    assert not too_large
