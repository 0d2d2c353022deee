"""The model that a plan is for: the numbers that cost time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megacore._C import planner as core
from megacore.training.run_config import RunConfig

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class PlanModel:
    """A dense transformer: decoder-only, bidirectional, or encoder and decoder.

    Attributes:
        family: "gpt", "bert" or "t5".
        num_layers: Layers; of a T5, those of the encoder.
        vocab_size: Rows of the word embedding before padding.
        vocab_divisor: Rows are padded to a multiple of this times the tensor-parallel size.
        decoder_layers: Of a T5.
        decoder_seq_length: Of a T5.
        learned_positions: Rows of the position embedding; 0 for other kinds of positions.
        norm_bias: LayerNorm, not RMSNorm.
        dropout: Whether hidden states are dropped out.
        dtype: "bf16", "fp16" or "fp32".
        half_gradients: Gradients are summed in the dtype of the parameters, not in fp32.
        attention: "flash", or "unfused" with a matrix of scores in memory.
        fused_loss: Cross entropy that makes no fp32 copies of the logits, as megacore's.
    """

    family: str = "gpt"
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_groups: int
    head_width: int
    gated: bool = False
    untied: bool = False
    vocab_size: int
    vocab_divisor: int = 128
    seq_length: int
    decoder_layers: int = 0
    decoder_seq_length: int = 0
    learned_positions: int = 0
    linear_bias: bool = True
    qkv_bias: bool = True
    norm_bias: bool = True
    dropout: bool = True
    dtype: str = "bf16"
    half_gradients: bool = False
    attention: str = "flash"
    fused_loss: bool = True

    @classmethod
    def of(cls, run: RunConfig, vocab_size: int | None = None) -> PlanModel:
        """The model of a run.

        Args:
            run: Resolved settings.
            vocab_size: Tokens of the tokenizer; by default the setting.
        """
        model, precision = run.model, run.precision
        hidden, heads = int(model.hidden_size or 1), int(model.num_attention_heads or 1)
        length = int(run.data.length or 1)
        is_learned = model.position_kind == "learned_absolute"
        ffn = max(int((4 * hidden * 2 / 3) / 64), 1) * 64 if model.gated else 4 * hidden
        is_t5 = model.model_family == "t5"
        return cls(
            family=model.model_family,
            decoder_layers=int(model.decoder_num_layers or model.depth or 1) if is_t5 else 0,
            decoder_seq_length=int(run.masking.decoder_seq_length or length) if is_t5 else 0,
            num_layers=int(model.depth or 1),
            hidden_size=hidden,
            ffn_hidden_size=model.ffn_hidden_size or ffn,
            num_heads=heads,
            num_groups=model.num_query_groups if model.group_query_attention else heads,
            head_width=model.kv_channels or hidden // heads,
            gated=model.gated,
            untied=model.untie_embeddings_and_output_weights,
            vocab_size=vocab_size or int(run.tokenizer.vocab_size or 1),
            vocab_divisor=model.make_vocab_size_divisible_by,
            seq_length=length,
            learned_positions=int(model.max_position_embeddings or length) if is_learned else 0,
            linear_bias=model.add_bias_linear,
            qkv_bias=model.add_bias_linear or model.add_qkv_bias,
            norm_bias=model.normalization == "LayerNorm",
            dropout=model.hidden_dropout > 0.0,
            dtype="fp16" if precision.fp16 else "bf16" if precision.bf16 else "fp32",
            half_gradients=precision.fp16 and not precision.accumulate_allreduce_grads_in_fp32,
        )

    def to_core(self) -> Any:
        """The same for the C++ core."""
        model = core.Model()
        for name, value in (
            ("layers", self.num_layers),
            ("hidden", self.hidden_size),
            ("ffn", self.ffn_hidden_size),
            ("heads", self.num_heads),
            ("groups", self.num_groups),
            ("head_width", self.head_width),
            ("vocab", self.vocab_size),
            ("vocab_divisor", self.vocab_divisor),
            ("seq_length", self.seq_length),
            ("learned_positions", self.learned_positions),
            ("decoder_layers", self.decoder_layers),
            ("decoder_length", self.decoder_seq_length),
            ("gated", self.gated),
            ("untied", self.untied),
            ("linear_bias", self.linear_bias),
            ("qkv_bias", self.qkv_bias),
            ("norm_bias", self.norm_bias),
            ("dropout", self.dropout),
            ("causal", self.family != "bert"),
            ("flash", self.attention == "flash"),
            ("fused_loss", self.fused_loss),
            ("half_gradients", self.half_gradients),
            ("dtype_bytes", DTYPE_BYTES[self.dtype]),
        ):
            setattr(model, name, value)
        return model

    def padded_vocab(self, tp: int) -> int:
        """Rows of the word embedding with `tp` tensor-parallel processes."""
        return int(self.to_core().padded_vocab(tp))

    def num_parameters(self) -> int:
        """Elements of all parameters, of one process."""
        return int(core.count_parameters(self.to_core()))

    def flops(self, global_batch: float, convention: str = "full") -> float:
        """Floating-point operations of a step, without recompute.

        Args:
            global_batch: Sequences of the step.
            convention: "full" counts the masked half of causal attention, as the established
                throughput formula does; "causal" does not.
        """
        return float(core.training_flops(self.to_core(), global_batch, convention == "full"))
