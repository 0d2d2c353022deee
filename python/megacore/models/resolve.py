"""From the flags of a model to the resolved shape its layers are built from."""

from __future__ import annotations

from typing import cast

from megacore.layers.spec import (
    Activation,
    NormKind,
    RecomputeSpec,
    RotarySpec,
    TransformerSpec,
)
from megacore.models.config import ModelConfig, RecomputeConfig


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
    rotary = None
    if config.position_embedding_type == "rope":
        rotary = RotarySpec(
            dim=int(head_dim * config.rotary_percent),
            base=float(config.rotary_base),
            interleaved=config.rotary_interleaved,
            interpolation=float(config.rotary_seq_len_interpolation_factor or 1),
        )
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
        linear_bias=config.add_bias_linear,
        qkv_bias=config.add_qkv_bias,
        qk_layernorm=config.qk_layernorm,
        residual_after_norm=config.apply_residual_connection_post_layernorm,
        fp32_residual=config.fp32_residual_connection,
        attention_dropout=config.attention_dropout,
        hidden_dropout=config.hidden_dropout,
        scale_by_layer=config.apply_query_key_layer_scaling,
        rotary=rotary,
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


def _activation(config: ModelConfig) -> Activation:
    if config.swiglu:
        return "swiglu"
    if config.squared_relu:
        return "squared_relu"
    if config.openai_gelu or config.bias_gelu_fusion:
        return "gelu_tanh"
    return "gelu_erf"
