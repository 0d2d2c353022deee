"""The shape and numerics of a transformer stack, with every default already resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megacore.layers.rotary_scaling import RotaryScaling

Activation = Literal["gelu_tanh", "gelu_erf", "gelu_quick", "silu", "squared_relu", "relu"]
NormKind = Literal["LayerNorm", "RMSNorm"]
RecomputeKind = Literal["none", "selective", "uniform", "block"]


@dataclass(frozen=True, kw_only=True)
class RotarySpec:
    """Rotary position embedding.

    Attributes:
        dim: Leading lanes of each head that are rotated; even.
        base: Base of the geometric series of wavelengths.
        interleaved: Pair lanes (0, 1), (2, 3), ... instead of (0, dim/2), (1, dim/2 + 1), ...
        interpolation: Positions are divided by this before use.
        scaling: How the wavelengths are stretched, or None.
    """

    dim: int
    base: float
    interleaved: bool
    interpolation: float
    scaling: RotaryScaling | None = None


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Attention to the nearest tokens only, in some of the layers.

    Attributes:
        tokens: Tokens that a query sees, itself included.
        layers: For each layer whether it has the window; the others see everything.
    """

    tokens: int
    layers: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class RecomputeSpec:
    """Which activations are recomputed in backward instead of kept.

    Attributes:
        kind: "selective" redoes core attention; "uniform" keeps only the input of each group of
            `num_layers` layers; "block" does so for each of the first `num_layers` layers.
        num_layers: See `kind`.
    """

    kind: RecomputeKind = "none"
    num_layers: int = 0


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """A stack of layers.

    Attributes:
        num_layers: Depth L.
        hidden_size: Width H of the residual stream.
        ffn_hidden_size: Inner width F of the MLP (of each half when gated).
        num_heads: Query heads N.
        num_groups: Key/value heads G; divides N.
        head_dim: Width D of a head; N * D need not equal H.
        normalization: Kind of every norm, the ones of q and k included.
        norm_epsilon: Added to the variance (LayerNorm) or mean square (RMSNorm).
        zero_centered_norm: Norm weights are stored minus one.
        activation: Non-linearity of the MLP.
        gated_mlp: `linear_fc1` has two halves; activation(first) * second.
        linear_bias: Biases in all linear layers.
        qkv_bias: Bias in the query/key/value projection.
        qk_layernorm: Norm over the head width of q and k, before rotation.
        residual_after_norm: The residual branch starts behind the norm instead of before it.
        fp32_residual: The residual stream is kept in float32.
        attention_dropout: Drop probability of attention weights.
        hidden_dropout: Drop probability of embeddings and of each branch's output.
        fused_dropout: Dropout and the addition to the residual stream are one pass.
        fused_activation_bias: The bias before the activation is added by the activation.
        scale_by_layer: Queries are additionally divided by the layer number and the scores
            multiplied back after the product, which keeps float16 products in range.
        rotary: Rotary embedding, or None.
        local_rotary: That of layers with a window, where it is another one.
        window: Which layers see the nearest tokens only; None for no layer.
        softmax_scale: Scores are multiplied by this; None for 1 / sqrt(D).
        attention_softcap: Scores s become cap * tanh(s / cap); None for no cap.
        logit_softcap: The same for the logits of the model.
        scale_embeddings: Word embeddings are multiplied by sqrt(H), rounded to their dtype.
        post_branch_norm: A norm behind each branch, before it is added to the residual stream.
        parallel_residual: Attention and MLP both read the input of the layer.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_groups: int
    head_dim: int
    normalization: NormKind
    norm_epsilon: float
    zero_centered_norm: bool
    activation: Activation
    gated_mlp: bool
    linear_bias: bool
    qkv_bias: bool
    qk_layernorm: bool
    residual_after_norm: bool
    fp32_residual: bool
    attention_dropout: float
    hidden_dropout: float
    scale_by_layer: bool
    rotary: RotarySpec | None
    local_rotary: RotarySpec | None = None
    window: WindowSpec | None = None
    softmax_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    scale_embeddings: bool = False
    post_branch_norm: bool = False
    parallel_residual: bool = False
    fused_dropout: bool = True
    fused_activation_bias: bool = True

    def window_of(self, layer_idx: int) -> int | None:
        """Tokens that a query of this layer sees, or None for all before it."""
        if self.window is None or not self.window.layers[layer_idx]:
            return None
        return self.window.tokens
