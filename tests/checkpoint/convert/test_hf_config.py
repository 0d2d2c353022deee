"""`config.json` files as they are published, old and new style, and everything that is refused."""

from __future__ import annotations

import math

import pytest

from megacore.checkpoint.convert.hf.families import (
    FAMILIES,
    NOT_YET,
    family_for,
    family_named,
    family_of,
)
from megacore.errors import CheckpointError, UsageError
from megacore.models.config import ModelConfig

LLAMA_31 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "initializer_range": 0.02,
    "intermediate_size": 36864,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262144,
}
FACTORS = [1.0 + 0.01 * i for i in range(48)]
PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": FACTORS, "short_factor": FACTORS, "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
# config.json -> some fields that it must become.
PUBLISHED = {
    "llama-3.1": (
        LLAMA_31,
        {
            "num_query_groups": 8,
            "kv_channels": 128,
            "rotary_base": 500000,
            "rope_scaling_type": "llama3",
            "rope_scaling_factor": 8.0,
            "rope_scaling_original_length": 8192,
            "norm_epsilon": 1e-5,
            "swiglu": True,
            "add_bias_linear": False,
        },
    ),
    "gpt2": (
        GPT2,
        {
            "ffn_hidden_size": 3072,
            "bias_gelu_fusion": True,
            "position_embedding_type": "learned_absolute",
            "max_position_embeddings": 1024,
            "hidden_dropout": 0.1,
            "untie_embeddings_and_output_weights": False,
        },
    ),
    "mistral": (MISTRAL, {"window_size": "4095,0", "window_attn_skip_freq": None}),
    "qwen2.5": (QWEN25, {"window_size": None, "add_qkv_bias": True, "num_query_groups": 4}),
    "gemma2": (
        GEMMA2,
        {
            "window_size": "4095,0",
            "window_attn_skip_freq": "2",
            "softmax_scale": 144**-0.5,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "apply_layernorm_1p": True,
            "sandwich_norm": True,
            "geglu": True,
        },
    ),
    "gemma3": (
        GEMMA3,
        {
            "window_size": "511,0",
            "window_attn_skip_freq": "6",
            "rotary_base": 1000000,
            "rotary_base_local": 10000,
            "qk_layernorm": True,
            "final_logit_softcapping": None,
        },
    ),
    "phi3": (
        PHI3,
        {
            "rope_scaling_type": "longrope",
            "rope_scaling_original_length": 4096,
            "rope_scaling_attention_factor": math.sqrt(1 + math.log(32) / math.log(4096)),
            "rope_scaling_long_factors": tuple(FACTORS),
            "window_size": "262143,0",
        },
    ),
    "pythia": (
        PYTHIA,
        {"rotary_percent": 0.25, "parallel_residual": True, "normalization": "LayerNorm"},
    ),
}


def read(values):
    return family_of(values, "config.json").read(values, "config.json")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name):
    values, fields = PUBLISHED[name]
    config = read(values)
    for field, expected in fields.items():
        assert getattr(config, field) == expected, field
    written = family_of(values, "").express(config)
    # What is written means the same, and says the same where it says something.
    assert read(written) == config
    for key in written.keys() & values.keys() - {"rope_scaling", "n_inner", "max_window_layers"}:
        if not (key == "sliding_window" and not values.get("use_sliding_window", True)):
            assert written[key] == values[key], key


def test_both_styles_of_rotary_positions_mean_the_same():
    new = {k: v for k, v in LLAMA_31.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = LLAMA_31["rope_scaling"] | {"rope_theta": 500000.0}
    new["dtype"] = new.pop("torch_dtype")
    assert read(new) == read(LLAMA_31)
    new = {k: v for k, v in PYTHIA.items() if not k.startswith("rotary")}
    new["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000,
        "partial_rotary_factor": 0.25,
    }
    assert read(new) == read(PYTHIA)
    new = {k: v for k, v in GEMMA3.items() if not k.startswith("rope")}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    new["layer_types"] = [
        "sliding_attention" if i % 6 != 5 else "full_attention" for i in range(26)
    ]
    del new["sliding_window_pattern"]
    assert read(new) == read(GEMMA3)


def test_older_versions_can_read_what_is_written():
    # Version 4 has the rotated part under both names, and knows three entries of LongRoPE only.
    assert read(PYTHIA | {"partial_rotary_factor": 0.25}) == read(PYTHIA)
    scaling = FAMILIES["phi3"].express(read(PHI3))["rope_scaling"]
    assert scaling == PHI3["rope_scaling"] | {"type": "longrope"}
    own = PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {"attention_factor": 1.5}}
    scaling = FAMILIES["phi3"].express(read(own))["rope_scaling"]
    assert (scaling["rope_type"], scaling["attention_factor"]) == ("longrope", 1.5)


def test_yarn_with_mscale_is_its_attention_factor():
    scaling = {"type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.1}
    config = read(QWEN25 | {"rope_scaling": scaling})
    expected = (0.07 * math.log(40) + 1) / (0.11 * math.log(40) + 1)
    assert config.rope_scaling_attention_factor == pytest.approx(expected, rel=1e-12)
    # As transformers: without an original length the positions of the file count.
    assert config.rope_scaling_original_length == 32768
    assert (config.rope_scaling_beta_fast, config.rope_scaling_beta_slow) == (32.0, 1.0)


REFUSED = [
    (LLAMA_31, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
    (LLAMA_31, {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor = None"),
    (LLAMA_31, {"rope_scaling": {"type": "linear", "factor": 2.0, "extra": 1}}, "extra = 1"),
    (LLAMA_31, {"rope_scaling": "linear"}, "not a dictionary"),
    (LLAMA_31, {"rope_theta": 10000.5}, "not a whole number"),
    (LLAMA_31, {"hidden_act": "gelu_sigmoid"}, "hidden_act = 'gelu_sigmoid'"),
    (LLAMA_31, {"hidden_act": "relu2"}, "hidden_act = 'relu2'"),
    (LLAMA_31, {"attention_bias": True}, "attention_bias and mlp_bias"),
    (LLAMA_31, {"attention_multiplier": 0.1}, "attention_multiplier = 0.1 is not known"),
    (LLAMA_31, {"quantization_config": {"bits": 4}}, "quantised"),
    (LLAMA_31, {"architectures": ["LlamaForSequenceClassification"]}, "SequenceClassification"),
    (LLAMA_31, {"num_hidden_layers": None}, "num_hidden_layers is missing"),
    (LLAMA_31, {"num_key_value_heads": 7}, "num-query-groups"),
    (LLAMA_31, {"hidden_size": "4096"}, "hidden_size = '4096'"),
    (LLAMA_31, {"tie_word_embeddings": "no"}, "neither true nor false"),
    (LLAMA_31, {"is_encoder_decoder": True}, "is_encoder_decoder"),
    (LLAMA_31, {"hidden_size": 4097}, "not a multiple"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    (GPT2, {"activation_function": "silu"}, "activation_function = 'silu'"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention"),
    (QWEN25, {"layer_types": ["sliding_attention"] * 28}, "there is none"),
    (QWEN25, {"layer_types": ["chunked_attention"] * 28}, "chunked_attention"),
    (QWEN25, {"layer_types": ["full_attention"]}, "28 entries"),
    (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    (PHI3, {"full_attn_mod": 2}, "full_attn_mod = 2"),
    (PHI3, {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "long_factor"),
    (PYTHIA, {"attention_bias": False}, "attention_bias"),
    (PYTHIA, {"rotary_pct": 0.01}, "rotated part of a head"),
    (PYTHIA, {"partial_rotary_factor": 0.5}, "two different rotated parts"),
    (PYTHIA, {"rotary_pct": "all"}, "partial_rotary_factor = 'all'"),
]


@pytest.mark.parametrize(("values", "change", "text"), REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(values, change, text):
    with pytest.raises(CheckpointError, match=text):
        read(values | change)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(CheckpointError) as caught:
        read(LLAMA_31 | {"hidden_act": "mish", "rope_scaling": {"type": "mrope"}, "novel": 3})
    for text in ("mish", "mrope", "novel = 3", "config.json"):
        assert text in str(caught.value)


def test_what_changes_nothing_is_accepted():
    # Options that are off, bookkeeping of libraries, defaults of generation.
    more = {"novel": False, "other": None, "_attn": "x", "unsloth_version": "1", "temperature": 0.5}
    assert read(LLAMA_31 | more) == read(LLAMA_31)
    phi4 = {"interpolate_factor": 1, "full_attn_mod": 1, "lm_head_bias": False}
    assert read(PHI3 | phi4) == read(PHI3)


def test_unknown_and_future_families():
    for name in NOT_YET:
        with pytest.raises(CheckpointError, match=NOT_YET[name].replace("(", r"\(")[:20]):
            family_of({"model_type": name}, "config.json")
    with pytest.raises(CheckpointError, match="'rwkv' cannot be converted; these can: llama"):
        family_of({"model_type": "rwkv"}, "config.json")
    with pytest.raises(CheckpointError, match="None cannot"):
        family_of({}, "config.json")
    with pytest.raises(UsageError, match="mixture-of-experts"):
        family_named("mixtral")


SMALL = {"num_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96}
LIKE_LLAMA = SMALL | {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
    "max_position_embeddings": 64,
    "untie_embeddings_and_output_weights": True,
}
# Family that a megacore model finds -> its settings.
FOUND = {
    "llama": [
        LIKE_LLAMA,
        LIKE_LLAMA | {"rotary_seq_len_interpolation_factor": 4, "kv_channels": 24},
        LIKE_LLAMA | {"use_rope_scaling": True, "attention_dropout": 0.3},
        LIKE_LLAMA | {"apply_query_key_layer_scaling": True, "softmax_scale": 0.25},
    ],
    "mistral": [LIKE_LLAMA | {"window_size": "15,0"}],
    "qwen2": [
        LIKE_LLAMA | {"add_qkv_bias": True},
        LIKE_LLAMA
        | {"add_qkv_bias": True, "window_size": "15,0", "window_attn_skip_freq": "[0,1,1]"},
    ],
    "qwen3": [LIKE_LLAMA | {"qk_layernorm": True}],
    "phi3": [LIKE_LLAMA | {"rotary_percent": 0.5}],
    "gpt2": [SMALL | {"max_position_embeddings": 64}],
    "gpt_neox": [SMALL | {"position_embedding_type": "rope", "max_position_embeddings": 64}],
}


@pytest.mark.parametrize(
    ("family", "settings"), [(name, s) for name, many in FOUND.items() for s in many]
)
def test_a_model_finds_its_family(family, settings):
    assert family_for(ModelConfig(**settings).resolved()).name == family


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"squared_relu": True, "swiglu": False}, "relu2"),
        ({"softmax_scale": 0.3}, "softmax_scale is 0.3"),
        ({"rotary_interleaved": True}, "interleaved=True"),
        ({"position_embedding_type": "none"}, "position_embedding_type is none"),
        ({"sandwich_norm": True}, "post_branch_norm is True|has no tensor"),
        ({"window_size": "7,0", "window_attn_skip_freq": "2"}, "window"),
    ],
)
def test_what_no_family_can_be_is_said_for_each(change, text):
    config = ModelConfig(**LIKE_LLAMA | change).resolved()
    with pytest.raises(CheckpointError, match=text) as caught:
        family_for(config)
    for name in FAMILIES:
        assert f"a {name} " in str(caught.value)
