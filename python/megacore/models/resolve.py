"""From the flags of a model to the resolved shape its layers are built from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from megacore.config.faults import fault, required
from megacore.errors import ConfigError, Fault
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
    faults = list(_missing(config))
    if faults:
        raise ConfigError(faults)
    hidden = config.hidden_size or 0
    heads = config.num_attention_heads or 0
    groups = config.num_query_groups if config.group_query_attention else heads
    head_dim = config.kv_channels or hidden // heads
    rotary_dim = int(head_dim * config.rotary_percent) if _uses_rotary(config) else 0
    faults = list(_misfits(config, heads, groups, rotary_dim))
    if faults:
        raise ConfigError(faults)
    rotary = None
    if _uses_rotary(config):
        rotary = RotarySpec(
            dim=rotary_dim,
            base=float(config.rotary_base),
            interleaved=config.rotary_interleaved,
            interpolation=float(config.rotary_seq_len_interpolation_factor or 1),
        )
    return TransformerSpec(
        num_layers=config.num_layers or 0,
        hidden_size=hidden,
        ffn_hidden_size=config.ffn_hidden_size or _default_ffn(config, hidden),
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
        ConfigError: Full recompute without a method and a number of layers.
    """
    if config is None:
        return RecomputeSpec()
    granularity = config.recompute_granularity
    if granularity is None and config.recompute_activations:
        granularity = "selective"
    if granularity is None:
        return RecomputeSpec()
    if granularity == "selective":
        return RecomputeSpec(kind="selective")
    if config.recompute_method not in ("uniform", "block") or not config.recompute_num_layers:
        given = {
            "--recompute-method": config.recompute_method,
            "--recompute-num-layers": config.recompute_num_layers,
        }
        raise ConfigError([fault("MC0151", given, allowed="uniform or block, and at least 1")])
    if config.recompute_method == "uniform":
        return RecomputeSpec(kind="uniform", num_layers=config.recompute_num_layers)
    return RecomputeSpec(kind="block", num_layers=config.recompute_num_layers)


def _uses_rotary(config: ModelConfig) -> bool:
    return config.position_embedding_type == "rope" or config.use_rotary_position_embeddings


def _default_ffn(config: ModelConfig, hidden: int) -> int:
    # Gated: two thirds of the plain size, in whole multiples of 64, so the MLP costs the same.
    return int((4 * hidden * 2 / 3) / 64) * 64 if config.swiglu else 4 * hidden


def _activation(config: ModelConfig) -> Activation:
    if config.swiglu:
        return "swiglu"
    if config.squared_relu:
        return "squared_relu"
    if config.openai_gelu or (config.bias_gelu_fusion and config.add_bias_linear):
        return "gelu_tanh"
    return "gelu_erf"


def _missing(config: ModelConfig) -> Iterator[Fault]:
    needed = {
        "--num-layers": config.num_layers,
        "--hidden-size": config.hidden_size,
        "--num-attention-heads": config.num_attention_heads,
    }
    if config.position_embedding_type == "learned_absolute":
        needed["--max-position-embeddings"] = config.max_position_embeddings
    for name, value in needed.items():
        if not value or value < 1:
            yield required(name)


def _misfits(config: ModelConfig, heads: int, groups: int, rotary_dim: int) -> Iterator[Fault]:
    hidden = config.hidden_size or 0
    if config.kv_channels is None and hidden % heads:
        given = {"--hidden-size": hidden, "--num-attention-heads": heads}
        yield fault("MC0103", given, allowed=f"a multiple of {heads}")
    if groups < 1 or heads % groups:
        given = {"--num-attention-heads": heads, "--num-query-groups": groups}
        yield fault("MC0104", given, allowed=f"a divisor of {heads}")
    if _uses_rotary(config) and (rotary_dim < 2 or rotary_dim % 2):
        rotated = {
            "--rotary-percent": config.rotary_percent,
            "--kv-channels": config.kv_channels or hidden / heads,
        }
        yield fault("MC0106", rotated, allowed=f"an even number of channels, found {rotary_dim}")
