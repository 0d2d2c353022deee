"""Settings of a transformer model and of activation recompute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture, initialisation and numerics of a decoder-only transformer."""

    GROUP: ClassVar[str] = "model"

    num_layers: int | None = flag(
        "--num-layers",
        default=None,
        help="depth of the (decoder-only or single) stack; mutually exclusive with --encoder-num-layers, whichever is given fills the other; required",
    )
    encoder_num_layers: int | None = flag(
        "--encoder-num-layers",
        default=None,
        help="encoder depth for encoder-decoder models; exclusive with --num-layers",
    )
    hidden_size: int | None = flag("--hidden-size", default=None, help="model width; required")
    ffn_hidden_size: int | None = flag(
        "--ffn-hidden-size",
        default=None,
        help="MLP inner width; default 4*h, or int((4*h*2/3)/64)*64 with --swiglu",
    )
    num_attention_heads: int | None = flag(
        "--num-attention-heads", default=None, help="number of query heads; required"
    )
    kv_channels: int | None = flag(
        "--kv-channels", default=None, help="per-head width; default hidden/heads (must divide)"
    )
    group_query_attention: bool = flag(
        "--group-query-attention",
        default=False,
        help="switch GQA on; without it --num-query-groups is ignored (groups=heads)",
    )
    num_query_groups: int = flag(
        "--num-query-groups", default=1, help="number of K/V groups when GQA is on"
    )
    max_position_embeddings: int | None = flag(
        "--max-position-embeddings",
        default=None,
        help="rows of the learned position table; required even with rope; must be >= seq length",
    )
    position_embedding_type: str = flag(
        "--position-embedding-type",
        default="learned_absolute",
        choices=("learned_absolute", "rope", "none"),
        help="absolute table, rotary, or nothing",
    )
    use_rotary_position_embeddings: bool = flag(
        "--use-rotary-position-embeddings",
        default=False,
        help="old spelling; forces position type rope",
    )
    rotary_base: int = flag("--rotary-base", default=10000, help="rope theta base (int)")
    rotary_percent: float = flag(
        "--rotary-percent", default=1.0, help="fraction of head dim that is rotated"
    )
    rotary_interleaved: bool = flag(
        "--rotary-interleaved",
        default=False,
        help="pair even/odd lanes instead of half/half; requires --no-rope-fusion, not legacy models",
    )
    rotary_seq_len_interpolation_factor: int | None = flag(
        "--rotary-seq-len-interpolation-factor",
        default=None,
        help="position scale divisor; parsed but pretrain_gpt does not hand it to the core GPT model",
    )
    add_position_embedding: bool = flag(
        "--no-position-embedding",
        default=True,
        help="deprecated; RuntimeError unless position type is rope",
    )
    make_vocab_size_divisible_by: int = flag(
        "--make-vocab-size-divisible-by",
        default=128,
        help="vocabulary is padded to a multiple of this * TP size",
    )
    normalization: str = flag(
        "--normalization", default="LayerNorm", choices=("LayerNorm", "RMSNorm"), help="norm kind"
    )
    norm_epsilon: float = flag("--norm-epsilon", default=1e-05, help="epsilon of every norm")
    apply_layernorm_1p: bool = flag(
        "--apply-layernorm-1p",
        default=False,
        help="store gamma-1 ('zero centred gamma'); weight used is 1+w",
    )
    apply_residual_connection_post_layernorm: bool = flag(
        "--apply-residual-connection-post-layernorm",
        default=False,
        help="residual branch taken after the norm (original BERT order)",
    )
    openai_gelu: bool = flag(
        "--openai-gelu",
        default=False,
        help="legacy-model only tanh-gelu variant; ignored by core models",
    )
    squared_relu: bool = flag(
        "--squared-relu",
        default=False,
        help="activation relu(x)^2; exclusive with --swiglu; TransformerConfig rejects it while bias-activation fusion is on, so needs --no-bias-gelu-fusion or --disable-bias-linear",
    )
    swiglu: bool = flag("--swiglu", default=False, help="gated SiLU MLP (fc1 twice as wide)")
    untie_embeddings_and_output_weights: bool = flag(
        "--untie-embeddings-and-output-weights",
        default=False,
        help="separate output projection weight",
    )
    attention_dropout: float = flag(
        "--attention-dropout", default=0.1, help="dropout on attention probabilities"
    )
    hidden_dropout: float = flag(
        "--hidden-dropout", default=0.1, help="dropout after attention/MLP and on embeddings"
    )
    bias_gelu_fusion: bool = flag(
        "--no-bias-gelu-fusion",
        default=True,
        help="disable fused bias+gelu; forced off by --disable-bias-linear",
    )
    add_bias_linear: bool = flag(
        "--disable-bias-linear", default=True, help="no bias in linear layers"
    )
    add_qkv_bias: bool = flag(
        "--add-qkv-bias", default=False, help="bias only in the QKV projection"
    )
    init_method_std: float = flag("--init-method-std", default=0.02, help="std of normal init")
    init_method_xavier_uniform: bool = flag(
        "--init-method-xavier-uniform",
        default=False,
        help="asks for Xavier; with core models at 0.9.0 this crashes, because an unknown config field scaled_init_method is passed",
    )
    perform_initialization: bool = flag(
        "--no-initialization",
        default=True,
        help="skip weight init (dest perform_initialization=False)",
    )
    fp32_residual_connection: bool = flag(
        "--fp32-residual-connection",
        default=False,
        help="residual stream in fp32; needs fp16 or bf16",
    )
    apply_query_key_layer_scaling: bool = flag(
        "--apply-query-key-layer-scaling",
        default=False,
        help="divide QK by layer number and multiply back inside softmax; turns fp32 softmax on",
    )
    attention_softmax_in_fp32: bool = flag(
        "--attention-softmax-in-fp32", default=False, help="softmax in fp32"
    )
    qk_layernorm: bool = flag("--qk-layernorm", default=False, help="LayerNorm on Q and K heads")


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """Which activations are recomputed in backward instead of kept."""

    GROUP: ClassVar[str] = "recompute"

    recompute_activations: bool = flag(
        "--recompute-activations",
        default=False,
        help="shorthand for --recompute-granularity selective",
    )
    recompute_granularity: str | None = flag(
        "--recompute-granularity",
        default=None,
        choices=("full", "selective"),
        help="whole layers, or only core attention",
    )
    recompute_method: str | None = flag(
        "--recompute-method",
        default=None,
        choices=("uniform", "block"),
        help="uniform: groups of N layers; block: only first N layers of each (virtual) stage",
    )
    recompute_num_layers: int | None = flag(
        "--recompute-num-layers", default=None, help="the N above"
    )
