"""Settings of a transformer model and of activation recompute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.settings import refuse, value_faults
from megacore.errors import Fault
from megacore.models.kinds import KindConfig
from megacore.models.positions import PositionConfig
from megacore.models.window import parse_window, window_layers


@dataclass(frozen=True, kw_only=True)
class ModelConfig(KindConfig, PositionConfig):
    """Architecture, initialisation and numerics of a transformer."""

    GROUP: ClassVar[str] = "model"

    num_layers: int | None = flag(
        "--num-layers", default=None, help="number of layers; required", bounds="[1, inf)"
    )
    encoder_num_layers: int | None = flag(
        "--encoder-num-layers",
        default=None,
        help="other name of --num-layers; exclusive with it",
        bounds="[1, inf)",
    )
    hidden_size: int | None = flag(
        "--hidden-size", default=None, help="model width; required", bounds="[1, inf)"
    )
    ffn_hidden_size: int | None = flag(
        "--ffn-hidden-size",
        default=None,
        help="MLP inner width; default 4*h, or int((4*h*2/3)/64)*64 with --swiglu or --geglu",
        bounds="[1, inf)",
    )
    num_attention_heads: int | None = flag(
        "--num-attention-heads",
        default=None,
        help="number of query heads; required",
        bounds="[1, inf)",
    )
    kv_channels: int | None = flag(
        "--kv-channels",
        default=None,
        help="per-head width; default hidden/heads (must divide)",
        bounds="[1, inf)",
    )
    group_query_attention: bool = flag(
        "--group-query-attention",
        default=False,
        help="grouped-query attention; without it --num-query-groups is ignored (groups = heads)",
    )
    num_query_groups: int = flag(
        "--num-query-groups",
        default=1,
        help="number of K/V groups when GQA is on",
        bounds="[1, inf)",
    )
    make_vocab_size_divisible_by: int = flag(
        "--make-vocab-size-divisible-by",
        default=128,
        help="vocabulary is padded to a multiple of this * TP size",
        bounds="[1, inf)",
    )
    normalization: str = flag(
        "--normalization", default="LayerNorm", choices=("LayerNorm", "RMSNorm"), help="norm kind"
    )
    norm_epsilon: float = flag(
        "--norm-epsilon", default=1e-05, help="epsilon of every norm", bounds="(0, inf)"
    )
    apply_layernorm_1p: bool = flag(
        "--apply-layernorm-1p",
        default=False,
        help="store the norm weight minus one; the weight used is 1 + w",
    )
    apply_residual_connection_post_layernorm: bool = flag(
        "--apply-residual-connection-post-layernorm",
        default=False,
        help="residual branch taken after the norm (original BERT order)",
    )
    openai_gelu: bool = flag(
        "--openai-gelu",
        default=False,
        help="GELU in its tanh form whatever the other flags say",
    )
    squared_relu: bool = flag(
        "--squared-relu",
        default=False,
        help="activation relu(x)^2; exclusive with --swiglu",
    )
    swiglu: bool = flag("--swiglu", default=False, help="gated SiLU MLP (fc1 twice as wide)")
    geglu: bool = flag(
        "--geglu",
        default=False,
        help="gated GELU MLP (fc1 twice as wide), GELU in the form that the other flags say",
    )
    quick_gelu: bool = flag(
        "--quick-gelu", default=False, help="GELU as x * sigmoid(1.702 x); exclusive with others"
    )
    untie_embeddings_and_output_weights: bool = flag(
        "--untie-embeddings-and-output-weights",
        default=False,
        help="separate output projection weight",
    )
    attention_dropout: float = flag(
        "--attention-dropout",
        default=0.1,
        help="dropout on attention probabilities",
        bounds="[0, 1]",
    )
    hidden_dropout: float = flag(
        "--hidden-dropout",
        default=0.1,
        help="dropout after attention/MLP and on embeddings",
        bounds="[0, 1]",
    )
    bias_gelu_fusion: bool = flag(
        "--no-bias-gelu-fusion",
        default=True,
        help="GELU in its exact (erf) form instead of the tanh form, and the bias before it "
        "added by the product; so too with --disable-bias-linear",
    )
    bias_swiglu_fusion: bool = flag(
        "--no-bias-swiglu-fusion",
        default=True,
        help="with --swiglu the bias of the first MLP layer is added by its product, not by the "
        "activation",
    )
    bias_dropout_fusion: bool = flag(
        "--no-bias-dropout-fusion",
        default=True,
        help="PyTorch's dropout, then the addition to the residual stream, instead of one pass "
        "that keeps no mask",
    )
    cross_entropy_fusion_impl: str = flag(
        "--cross-entropy-fusion-impl",
        default="native",
        choices=("native", "linear"),
        help="linear: projection and cross entropy together for a sixteenth of the tokens at a "
        "time, so that the logits of all never exist; costs one product more in backward",
    )
    add_bias_linear: bool = flag(
        "--disable-bias-linear", default=True, help="no bias in linear layers"
    )
    add_qkv_bias: bool = flag(
        "--add-qkv-bias", default=False, help="bias only in the QKV projection"
    )
    init_method_std: float = flag(
        "--init-method-std", default=0.02, help="std of normal init", bounds="[0, inf)"
    )
    init_method_xavier_uniform: bool = flag(
        "--init-method-xavier-uniform",
        default=False,
        help="Xavier-uniform instead of normal initialisation",
    )
    perform_initialization: bool = flag(
        "--no-initialization",
        default=True,
        help="do not initialise weights (they are about to be loaded)",
    )
    fp32_residual_connection: bool = flag(
        "--fp32-residual-connection",
        default=False,
        help="residual stream in fp32; needs --fp16 or --bf16",
    )
    apply_query_key_layer_scaling: bool = flag(
        "--apply-query-key-layer-scaling",
        default=False,
        help="divide attention scores by the layer number and multiply back in the softmax",
    )
    qk_layernorm: bool = flag("--qk-layernorm", default=False, help="LayerNorm on Q and K heads")
    window_size: str | None = flag(
        "--window-size",
        default=None,
        metavar="LEFT,RIGHT",
        help="attention to the LEFT tokens before a token and itself only; RIGHT is 0",
    )
    window_attn_skip_freq: str | None = flag(
        "--window-attn-skip-freq",
        default=None,
        metavar="N or [1,1,0]",
        help="layers without the window: every N-th one, or the zeros of a list of all layers; "
        "default none",
    )
    softmax_scale: float | None = flag(
        "--softmax-scale",
        default=None,
        help="factor of attention scores; default 1 / sqrt(channels of a head)",
        bounds="(0, inf)",
    )
    attn_logit_softcapping: float | None = flag(
        "--attn-logit-softcapping",
        default=None,
        help="attention scores s become cap * tanh(s / cap)",
        bounds="(0, inf)",
    )
    final_logit_softcapping: float | None = flag(
        "--final-logit-softcapping",
        default=None,
        help="logits x become cap * tanh(x / cap)",
        bounds="(0, inf)",
    )
    scale_embeddings: bool = flag(
        "--scale-embeddings",
        default=False,
        help="word embeddings times the square root of the hidden size",
    )
    sandwich_norm: bool = flag(
        "--sandwich-norm",
        default=False,
        help="a norm also behind attention and MLP, before they are added to the residual",
    )
    parallel_residual: bool = flag(
        "--use-parallel-residual",
        default=False,
        help="attention and MLP both read the input of the layer",
    )

    @property
    def depth(self) -> int | None:
        """Number of layers, whichever of its two flags was given."""
        return self.num_layers if self.num_layers is not None else self.encoder_num_layers

    @property
    def total_depth(self) -> int | None:
        """Layers of all stacks: of the encoder and the decoder of a T5."""
        if self.model_family != "t5" or self.depth is None:
            return self.depth
        return self.depth + (self.decoder_num_layers or self.depth)

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.swiglu or self.geglu

    @property
    def head_width(self) -> int | None:
        """Channels of one attention head, or None while that is unknown or not whole."""
        if self.kv_channels is not None:
            return self.kv_channels
        hidden, heads = self.hidden_size, self.num_attention_heads
        return hidden // heads if hidden and heads and hidden % heads == 0 else None

    def faults(self) -> Iterator[Fault]:
        """Rules of the architecture that these values break."""
        yield from value_faults(self)
        if self.depth is None:
            yield required("--num-layers")
        if self.hidden_size is None:
            yield required("--hidden-size")
        if self.num_attention_heads is None:
            yield required("--num-attention-heads")
        if self.max_position_embeddings is None and self.position_kind == "learned_absolute":
            yield required("--max-position-embeddings")
        if self.encoder_num_layers is not None and self.encoder_num_layers != self.depth:
            given: dict[str, object] = {
                "--num-layers": self.num_layers,
                "--encoder-num-layers": self.encoder_num_layers,
            }
            yield fault("MC0102", given, allowed="one of them")
        yield from self._head_faults()
        yield from self.position_faults(self.head_width)
        yield from self.kind_faults(self.position_kind)
        kinds = {
            "--squared-relu": self.squared_relu,
            "--swiglu": self.swiglu,
            "--geglu": self.geglu,
            "--relu": self.relu,
        }
        chosen: dict[str, object] = {name: "" for name, is_on in kinds.items() if is_on}
        if len(chosen) > 1:
            yield fault("MC0105", chosen, allowed="one of them")
        if self.quick_gelu and (self.squared_relu or self.swiglu or self.openai_gelu):
            other = "--openai-gelu" if self.openai_gelu else next(iter(chosen))
            yield fault("MC0105", {"--quick-gelu": "", other: ""}, allowed="one of them")
        if self.cross_entropy_fusion_impl == "linear":
            for name, value in (
                ("--final-logit-softcapping", self.final_logit_softcapping),
                ("--model-family", None if self.model_family == "gpt" else self.model_family),
            ):
                if value is not None:
                    given = {"--cross-entropy-fusion-impl": "linear", name: value}
                    yield fault("MC1230", given, allowed="--cross-entropy-fusion-impl native")
        if self.parallel_residual and self.apply_residual_connection_post_layernorm:
            given = {
                "--use-parallel-residual": "",
                "--apply-residual-connection-post-layernorm": "",
            }
            yield fault("MC0115", given, allowed="one of them")
        yield from self._window_faults()

    def _window_faults(self) -> Iterator[Fault]:
        given: dict[str, object]
        if self.window_size is None:
            for name, value in (
                ("--window-attn-skip-freq", self.window_attn_skip_freq),
                ("--rotary-base-local", self.rotary_base_local),
            ):
                if value is not None:
                    yield fault("MC0114", {name: value})
            return
        try:
            parse_window(self.window_size)
        except ValueError as error:
            yield fault("MC0113", {"--window-size": self.window_size}, more=str(error))
        try:
            window_layers(self.window_attn_skip_freq, self.depth or 1)
        except ValueError as error:
            given = {"--window-attn-skip-freq": self.window_attn_skip_freq}
            yield fault("MC0113", given, more=str(error))

    def _head_faults(self) -> Iterator[Fault]:
        given: dict[str, object]
        hidden, heads, groups = self.hidden_size, self.num_attention_heads, self.num_query_groups
        if hidden and heads and hidden > 0 and heads > 0:
            if self.kv_channels is None and hidden % heads:
                given = {"--hidden-size": hidden, "--num-attention-heads": heads}
                yield fault("MC0103", given, allowed="a divisor of the hidden size")
            if self.group_query_attention and groups > 0 and heads % groups:
                given = {"--num-query-groups": groups, "--num-attention-heads": heads}
                yield fault("MC0104", given, allowed=f"a divisor of {heads}")

    def resolved(self) -> ModelConfig:
        """A copy in which everything that can be derived is filled.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        hidden, heads, depth = self.hidden_size, self.num_attention_heads, self.depth
        assert hidden is not None  # faults() has refused None
        assert heads is not None
        is_t5 = self.model_family == "t5"
        ffn = max(int((4 * hidden * 2 / 3) / 64), 1) * 64 if self.gated else 4 * hidden
        return replace(
            self,
            num_layers=depth,
            encoder_num_layers=depth,
            decoder_num_layers=(self.decoder_num_layers or depth) if is_t5 else None,
            ffn_hidden_size=self.ffn_hidden_size or ffn,
            kv_channels=self.kv_channels or hidden // heads,
            num_query_groups=self.num_query_groups if self.group_query_attention else heads,
            position_embedding_type=self.position_kind,
            rope_scaling_type=self.scaling_kind,
            rope_scaling_original_length=self.original_length,
            bias_gelu_fusion=self.bias_gelu_fusion and self.add_bias_linear,
        )


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
        "--recompute-num-layers", default=None, help="the N above", bounds="[1, inf)"
    )

    def faults(self) -> Iterator[Fault]:
        """Rules of recompute that these values break."""
        yield from value_faults(self)
        extra: dict[str, object] = {}
        if self.recompute_method is not None:
            extra["--recompute-method"] = self.recompute_method
        if self.recompute_num_layers is not None:
            extra["--recompute-num-layers"] = self.recompute_num_layers
        if self.recompute_activations and self.recompute_granularity == "full":
            given = {"--recompute-activations": "", "--recompute-granularity": "full"}
            yield fault("MC0153", given, allowed="one of them")
        elif self.recompute_granularity == "full":
            if len(extra) < 2:
                yield fault("MC0151", {"--recompute-granularity": "full", **extra})
        elif self.recompute_activations or self.recompute_granularity == "selective":
            if extra:
                yield fault("MC0152", extra)
        elif extra:
            yield fault("MC0154", extra)

    def resolved(self) -> RecomputeConfig:
        """A copy in which the granularity says everything.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        if self.recompute_activations:
            return replace(self, recompute_granularity="selective")
        return self
