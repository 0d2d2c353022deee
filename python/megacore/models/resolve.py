"""From the flags of a model to the resolved shape its layers are built from."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from megacore.layers.rotary_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryScaling,
    YarnScaling,
    longrope_attention_factor,
    yarn_attention_factor,
)
from megacore.layers.spec import (
    Activation,
    NormKind,
    RecomputeSpec,
    RotarySpec,
    TransformerSpec,
    WindowSpec,
)
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.window import parse_window, window_layers


def transformer_spec(config: ModelConfig) -> TransformerSpec:
    """The stack that `config` describes, with unset sizes derived.

    Raises:
        ConfigError: A needed size is missing or sizes do not fit, all faults at once.
    """
    config = config.resolved()
    hidden, heads, groups = config.hidden_size, config.num_attention_heads, config.num_query_groups
    head_dim = config.kv_channels
    assert hidden is not None  # resolved() has filled all of these
    assert heads is not None
    assert head_dim is not None
    assert config.num_layers is not None
    assert config.ffn_hidden_size is not None
    rotary, local_rotary, window = _rotary(config, head_dim), None, None
    if config.window_size is not None:
        window = WindowSpec(
            tokens=parse_window(config.window_size),
            layers=window_layers(config.window_attn_skip_freq, config.num_layers),
        )
    if rotary is not None and config.rotary_base_local is not None:
        base = float(config.rotary_base_local)
        local_rotary = replace(rotary, base=base, interpolation=1.0, scaling=None)
    return TransformerSpec(
        num_layers=config.num_layers,
        hidden_size=hidden,
        ffn_hidden_size=config.ffn_hidden_size,
        num_heads=heads,
        num_groups=groups,
        head_dim=head_dim,
        normalization=cast(NormKind, config.normalization),
        norm_epsilon=config.norm_epsilon,
        zero_centered_norm=config.apply_layernorm_1p,
        activation=_activation(config),
        gated_mlp=config.gated,
        linear_bias=config.add_bias_linear,
        qkv_bias=config.add_qkv_bias,
        qk_layernorm=config.qk_layernorm,
        residual_after_norm=config.apply_residual_connection_post_layernorm,
        fp32_residual=config.fp32_residual_connection,
        attention_dropout=config.attention_dropout,
        hidden_dropout=config.hidden_dropout,
        scale_by_layer=config.apply_query_key_layer_scaling,
        rotary=rotary,
        local_rotary=local_rotary,
        window=window,
        softmax_scale=config.softmax_scale,
        attention_softcap=config.attn_logit_softcapping,
        logit_softcap=config.final_logit_softcapping,
        scale_embeddings=config.scale_embeddings,
        post_branch_norm=config.sandwich_norm,
        parallel_residual=config.parallel_residual,
        fused_dropout=config.bias_dropout_fusion,
        fused_activation_bias=(
            config.bias_swiglu_fusion if config.swiglu else config.bias_gelu_fusion
        ),
    )


def recompute_spec(config: RecomputeConfig | None) -> RecomputeSpec:
    """What `config` asks to recompute.

    Raises:
        ConfigError: The settings contradict each other, all faults at once.
    """
    config = RecomputeConfig() if config is None else config.resolved()
    if config.recompute_granularity is None:
        return RecomputeSpec()
    if config.recompute_granularity == "selective":
        return RecomputeSpec(kind="selective")
    assert config.recompute_num_layers is not None  # resolved() refuses full without it
    if config.recompute_method == "uniform":
        return RecomputeSpec(kind="uniform", num_layers=config.recompute_num_layers)
    return RecomputeSpec(kind="block", num_layers=config.recompute_num_layers)


def _rotary(config: ModelConfig, head_dim: int) -> RotarySpec | None:
    if config.position_embedding_type != "rope":
        return None
    return RotarySpec(
        dim=int(head_dim * config.rotary_percent),
        base=float(config.rotary_base),
        interleaved=config.rotary_interleaved,
        interpolation=float(config.rotary_seq_len_interpolation_factor or 1),
        scaling=_scaling(config),
    )


def _scaling(config: ModelConfig) -> RotaryScaling | None:
    kind, factor = config.rope_scaling_type, config.rope_scaling_factor
    original, attention = config.original_length or 0, config.rope_scaling_attention_factor
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "llama3":
        return Llama3Scaling(
            factor=factor,
            low_freq_factor=config.rope_scaling_low_freq_factor,
            high_freq_factor=config.rope_scaling_high_freq_factor,
            original_length=original,
        )
    if kind == "yarn":
        return YarnScaling(
            factor=factor,
            beta_fast=config.rope_scaling_beta_fast,
            beta_slow=config.rope_scaling_beta_slow,
            original_length=original,
            truncate=config.rope_scaling_truncate,
            attention_factor=yarn_attention_factor(factor) if attention is None else attention,
        )
    if kind == "longrope":
        default = longrope_attention_factor(factor, original)
        return LongRopeScaling(
            short_factors=config.rope_scaling_short_factors or (),
            long_factors=config.rope_scaling_long_factors or (),
            original_length=original,
            attention_factor=default if attention is None else attention,
        )
    return None


def _activation(config: ModelConfig) -> Activation:
    if config.swiglu:
        return "silu"
    if config.squared_relu:
        return "squared_relu"
    if config.relu:
        return "relu"
    if config.quick_gelu:
        return "gelu_quick"
    if config.openai_gelu or config.bias_gelu_fusion:
        return "gelu_tanh"
    return "gelu_erf"
