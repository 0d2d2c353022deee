"""Theoretical memory of a dense transformer on the most loaded process of a run.

s sequence length, b micro-batch size, L layers, h hidden size, n heads, g query groups, d head
width, f feed-forward width, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.training.flops import MEBIBYTE, EncoderDecoderShape, ModelShape


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What besides the model decides how much memory a process needs.

    Attributes:
        micro_batch_size: Sequences of one micro-batch.
        num_microbatches: Micro-batches of one replica per step, after any ramp-up.
        tensor_parallel: Processes that share each layer.
        pipeline_parallel: Processes that share the layers.
        stages_per_process: Virtual stages.
        context_parallel: Processes that share each sequence.
        sharded: Processes that share the optimizer state; 1 when it is not shared.
    """

    micro_batch_size: int = 1
    num_microbatches: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    stages_per_process: int = 1
    context_parallel: int = 1
    sharded: int = 1


def weight_and_optimizer_bytes(shape: ModelShape, footprint: Footprint) -> float:
    """Bytes of weights, gradients and Adam state: 18 per parameter, or 6 + 12/d when sharded.

    Parameters of the layers are counted as
    2 L h^2 [ (1 + g/n) d n/h + f/h (1.5 if gated) + 2/h + 1/(L h) ], which leaves biases and
    positions out, with those of the attention of a decoder to its encoder, and V h for an
    embedding matrix, of which the first stage has one (and the output layer, if it is another one
    and there is one stage).
    """
    per_parameter = 18.0 if footprint.sharded == 1 else 6 + 12 / footprint.sharded
    layer_bracket = (
        (1 + shape.groups / shape.heads) * shape.query_ratio
        + shape.ffn_ratio
        + 2 / shape.hidden
        + 1 / (shape.all_layers * shape.hidden)
    )
    in_layers = 2 * shape.all_layers * shape.hidden**2 * layer_bracket + shape.cross_parameters
    matrices = 2 if shape.untied and footprint.pipeline_parallel == 1 else 1
    in_embeddings = shape.padded_vocab * shape.hidden * matrices
    parameters = in_layers / footprint.pipeline_parallel + in_embeddings
    return parameters / footprint.tensor_parallel * per_parameter


def selective_activation_bytes(shape: ModelShape, footprint: Footprint) -> float:
    """Bytes of activations with selective recompute and sequence parallelism, half precision.

    s b h (18 + 4 f/h) L for the layers, the same for every number of stages p (a stage has L/p
    layers, the first one keeps p micro-batches); 8 s b p for the tokens; s b h p for the dropout
    behind the embedding; 4 s b h (1 + V/h) for the output layer where there is one stage. With v
    virtual stages all that is multiplied by 1 + (p - 1)/(p v), with fewer micro-batches than
    stages by their ratio. Tensor and context parallelism divide it.

    Source: Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models
    (2022), sections 4 and 5.
    """
    stages, virtual = footprint.pipeline_parallel, footprint.stages_per_process
    tokens = shape.seq_length * footprint.micro_batch_size
    total = tokens * shape.hidden * (18 + 4 * shape.ffn / shape.hidden) * shape.layers
    total += (8 + shape.hidden) * tokens * stages
    if virtual > 1:
        total *= 1 + (stages - 1) / (stages * virtual)
    elif stages > 1:
        total *= min(1.0, footprint.num_microbatches / stages)
    if stages == 1:
        total += tokens * shape.hidden * 4 * (1 + shape.padded_vocab / shape.hidden)
    return total / (footprint.tensor_parallel * footprint.context_parallel)


def format_theoretical_memory(
    shape: ModelShape, footprint: Footprint, *, selective_recompute: bool
) -> str:
    """The line printed after the first log line; activations are known for selective recompute, of
    one stack of layers."""
    weights = weight_and_optimizer_bytes(shape, footprint) / MEBIBYTE
    text = f"Theoretical memory footprints: weight and optimizer={weights:.2f} MB"
    if selective_recompute and not isinstance(shape, EncoderDecoderShape):
        activations = selective_activation_bytes(shape, footprint) / MEBIBYTE
        text += f", activation={activations:.2f} MB, total={weights + activations:.2f} MB"
    return text
