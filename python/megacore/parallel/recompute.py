"""Activation recompute in a parallel run: random streams restored, inputs kept in slices.

Source: Shoeybi et al., "Megatron-LM" (2019), for the streams; Narayanan et al., "Efficient
Large-Scale Language Model Training on GPU Clusters" (2021), section 3.5, for what is recomputed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megacore.errors import UsageError
from megacore.layers.dropout import Dropout
from megacore.layers.linear import Linear
from megacore.layers.lora import LowRankAdapter
from megacore.layers.transformer import TransformerLayer
from megacore.models.staged import StagedModel
from megacore.parallel.collectives import start_all_gather
from megacore.parallel.groups import Group
from megacore.parallel.linear import RowProduct
from megacore.parallel.random_streams import RandomStream, Streamed


class StreamedRecompute:
    """Recompute that restores a stream besides the default generators.

    Args:
        stream: Restored for the second run; afterwards it goes on where it was.
    """

    def __init__(self, stream: RandomStream) -> None:
        self.stream = stream

    def __call__(self, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """`run(*inputs)`, of whose activations only the inputs are kept for backward."""
        result = checkpoint(run, *inputs, use_reentrant=False, context_fn=self._contexts)
        assert isinstance(result, Tensor)
        return result

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self.stream.from_state(self.stream.state_tensors())


class SlicedRecompute:
    """Recompute whose input, equal on all processes of a group, is kept in slices.

    Each process keeps a slice of the flattened input; backward gathers them.

    Args:
        group: Processes whose inputs are equal.
        stream: Restored for the second run besides the default generators; or None.
    """

    def __init__(self, group: Group, stream: RandomStream | None) -> None:
        self.group = group
        self.stream = stream

    def __call__(self, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """`run(x, *others)`: `x` is kept in slices, the others whole and without gradient.

        Raises:
            UsageError: The elements of `x` cannot be divided among the processes.
        """
        x, *others = inputs
        if x.numel() % self.group.size:
            raise UsageError(
                f"activations {list(x.shape)} cannot be kept in {self.group.size} equal slices "
                "(--distribute-saved-activations)"
            )
        # The gradients of parameters are wanted also where that of `x` is not.
        anchor = torch.empty(0, requires_grad=True)
        result = _Sliced.apply(x, anchor, self, run, tuple(others))
        assert isinstance(result, Tensor)
        return result


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        recompute: SlicedRecompute,
        run: Callable[..., Tensor],
        others: tuple[Any, ...],
    ) -> Tensor:
        group, stream = recompute.group, recompute.stream
        ctx.recompute, ctx.run, ctx.others = recompute, run, others
        # Copied: a view would keep the whole input.
        ctx.save_for_backward(x.flatten().chunk(group.size)[group.rank].clone())
        ctx.x_shape, ctx.x_requires_grad = x.shape, x.requires_grad
        ctx.default_states = _default_states(x.device)
        ctx.stream_state = None if stream is None else stream.state_tensors()
        return run(x, *others)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (kept,) = ctx.saved_tensors
        stream = ctx.recompute.stream
        x = start_all_gather(kept, ctx.recompute.group, 0)().view(ctx.x_shape)
        x.requires_grad_(ctx.x_requires_grad)
        devices = [x.device] if x.device.type == "cuda" else []
        again = nullcontext() if stream is None else stream.from_state(ctx.stream_state)
        with torch.enable_grad(), torch.random.fork_rng(devices), again:
            torch.set_rng_state(ctx.default_states[0])
            for device, state in zip(devices, ctx.default_states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            y = ctx.run(x, *ctx.others)
        torch.autograd.backward(y, grads[0])
        return x.grad, None, None, None, None


def _default_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def apply_random_streams(
    model: StagedModel, stream: RandomStream, *, every_dropout: bool, slices: Group | None = None
) -> None:
    """Let attention dropout draw from `stream`, and recompute restore it.

    To be called when all parts of the model are in place (after context parallelism). A model
    whose dropout is 0 draws nothing and needs none of this.

    Args:
        model: Model or stage, changed in place.
        stream: Differs between the processes of a tensor-parallel group.
        every_dropout: All dropout draws from it (sequence parallelism).
        slices: The inputs of recomputed layers are kept in slices over these processes
            (`--distribute-saved-activations`); None keeps them whole.
    """
    spec = model.spec
    attention_dropout = spec.attention_dropout > 0.0
    hidden_dropout = every_dropout and spec.hidden_dropout > 0.0
    adapter_dropout = False
    if model.embedding is not None and hidden_dropout:
        model.embedding.dropout = Streamed(model.embedding.dropout, stream)
    blocks = list(model.blocks.values())
    for layer in itertools.chain(*(block.layers.values() for block in blocks)):
        assert isinstance(layer, TransformerLayer)
        if hidden_dropout:
            layer.hidden_dropout = Streamed(layer.hidden_dropout, stream)
        for attention in layer.attentions if attention_dropout else ():
            attention.core_attention = Streamed(attention.core_attention, stream)
            attention.recomputed = StreamedRecompute(stream)
        adapter_dropout |= _stream_adapters(layer, stream, every=every_dropout)
    for block in blocks:
        if slices is not None:
            block.recomputed = SlicedRecompute(slices, stream)
        elif attention_dropout or hidden_dropout or adapter_dropout:
            block.recomputed = StreamedRecompute(stream)


def _stream_adapters(layer: TransformerLayer, stream: RandomStream, *, every: bool) -> bool:
    """Let adapters draw from `stream` where processes have different parts of their input.

    Returns:
        Whether any does.
    """
    found = False
    for linear in layer.modules():
        if not isinstance(linear, Linear) or not isinstance(linear.adapter, LowRankAdapter):
            continue
        adapter = linear.adapter
        drops = isinstance(adapter.dropout, Dropout) and adapter.dropout.p > 0.0
        if drops and (every or isinstance(linear.product, RowProduct)):
            adapter.dropout = Streamed(adapter.dropout, stream)
            found = True
    return found
