"""What one micro-batch costs in a pipeline stage, measured on meta tensors by running the stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from megacore.layers.attention import AttentionContext, CoreAttention
from megacore.layers.attention_block import attention_block, attention_block_backward
from megacore.layers.dropout import Dropout
from megacore.models.gpt import GPTModel
from megacore.parallel.weight_grad import WeightGradStore
from megacore.planning.measure import Meter, Use
from megacore.planning.traffic import Traffic


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """What a stage works on.

    Attributes:
        batch_size: Sequences of a micro-batch.
        length: Tokens of each on this process (after context parallelism).
        hidden_length: Hidden states of each between stages (after sequence parallelism).
    """

    batch_size: int
    length: int
    hidden_length: int


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one micro-batch costs in a stage.

    Attributes:
        forward: Kept are the activations that backward needs.
        backward: Of the input alone when the schedule defers weight gradients; then kept, less
            the activations, is what they need.
        weight_grad: The deferred part; zero without.
        forward_traffic: What the process sends in forward.
        backward_traffic: What it sends in backward.
        output_bytes: Size of what goes to the next stage; 0 for the last one.
        input_bytes: Size of what comes from the stage before; 0 for the first one.
    """

    forward: Use
    backward: Use
    weight_grad: Use
    forward_traffic: Traffic
    backward_traffic: Traffic
    output_bytes: int
    input_bytes: int

    @property
    def activation_bytes(self) -> int:
        """What the micro-batch holds from forward to backward."""
        return self.forward.kept_bytes

    @property
    def deferred_bytes(self) -> int:
        """What it holds from the backward of the input to the gradients of the weights."""
        return max(0, self.forward.kept_bytes + self.backward.kept_bytes)

    @property
    def transient_bytes(self) -> int:
        """What passes use for a while, on top of what the micro-batch holds before or after."""
        return max(
            self.forward.peak_bytes - max(0, self.forward.kept_bytes),
            self.backward.peak_bytes,
            self.weight_grad.peak_bytes,
        )


class _KernelDropout(nn.Module):
    """PyTorch's dropout, which keeps one byte per element on a GPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        dropped = x if self.p == 0.0 else torch.native_dropout(x, self.p, True)[0]
        return dropped if residual is None else residual + dropped


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum = attention_block(q, k, v, causal=True)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return attention_block_backward(grads[0], *ctx.saved_tensors, causal=True)


class _KernelAttention(nn.Module):
    """Attention that keeps its inputs, output and log-sums, as the kernel of a GPU does."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        out = _Attention.apply(q, k, v)
        assert isinstance(out, Tensor)
        return out.flatten(2)


def use_gpu_kernels(model: GPTModel) -> None:
    """Replace what on the meta device would keep other tensors than on a GPU.

    Args:
        model: Model or stage on the meta device, changed in place; it can then compute nothing.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Dropout) and not child.fused:
                module.add_module(name, _KernelDropout(child.p))
            elif isinstance(child, CoreAttention):
                module.add_module(name, _KernelAttention())


def measure_stage(
    model: GPTModel,
    shape: StageShape,
    *,
    existing: list[Tensor],
    traffic: Traffic,
    store: WeightGradStore | None = None,
) -> StageCost:
    """Runs forward and backward of one micro-batch.

    Args:
        model: Stage on the meta device, in training mode, without attention dropout.
        shape: What it works on.
        existing: Parameters, gradients and optimizer state, which are not counted.
        traffic: Where the groups of the model count.
        store: Where linear layers leave weight gradients, when the schedule defers them.
    """
    use_gpu_kernels(model)
    tokens = torch.empty(shape.batch_size, shape.length, dtype=torch.int64, device="meta")
    weights = torch.empty(shape.batch_size, shape.length, device="meta")
    hidden_dtype = torch.float32 if model.spec.fp32_residual else model.dtype
    hidden_shape = (shape.batch_size, shape.hidden_length, model.spec.hidden_size)
    traffic.take()
    meter = Meter([tokens, weights, *existing])
    hidden = None
    with meter:
        with meter.measure() as forward:
            if model.embedding is None:
                hidden = torch.empty(
                    hidden_shape, dtype=hidden_dtype, device="meta", requires_grad=True
                )
            output = model(tokens, tokens, labels=tokens, hidden=hidden)
            grad = None
            output_bytes = output.nbytes
            if model.output_layer is not None:
                output = (output * weights).sum()
                output_bytes = 0
            edge = get_gradient_edge(output)
            del output
        forward_traffic = traffic.take()
        with meter.measure() as backward:
            if model.output_layer is None:
                grad = torch.empty(hidden_shape, dtype=hidden_dtype, device="meta")
            if store is None:
                torch.autograd.backward(edge, grad)
            else:
                with store.deferring(0, 0):
                    torch.autograd.backward(edge, grad)
            input_bytes = 0 if hidden is None else hidden.nbytes
            del edge, grad, hidden
        with meter.measure() as weight_grad:
            if store is not None:
                store.run(0, 0)
    return StageCost(
        forward=forward,
        backward=backward,
        weight_grad=weight_grad,
        forward_traffic=forward_traffic,
        backward_traffic=traffic.take(),
        output_bytes=output_bytes,
        input_bytes=input_bytes,
    )
