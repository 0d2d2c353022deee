"""Layers in their fused forms against the plain ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megacore.layers.dropout import Dropout
from megacore.layers.mlp import MLP
from megacore.models.config import ModelConfig
from megacore.models.resolve import transformer_spec
from megacore.ops.dropout_add import dropout_add_reference


def drawn_seed() -> int:
    """What the layer draws next, of the state of the default generator."""
    state = torch.get_rng_state()
    seed = int(torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64))
    torch.set_rng_state(state)
    return seed


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_is_the_op_with_a_number_of_the_generator(
    dtype: torch.dtype, with_residual: bool
) -> None:
    layer = Dropout(0.3)
    torch.manual_seed(4)
    x = torch.randn(3, 5, 7, dtype=dtype)
    residual = torch.randn(3, 5, 7, dtype=dtype) if with_residual else None
    seeds = []
    for _ in range(2):  # the second call draws another number
        seeds.append(drawn_seed())
        expected = dropout_add_reference(x, residual, drop=0.3, seed=seeds[-1])
        assert torch.equal(layer(x, residual), expected)
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_draws_nothing_where_it_drops_nothing(fused: bool) -> None:
    x, residual = torch.randn(4, 3), torch.randn(4, 3)
    before = torch.get_rng_state()
    for layer in (Dropout(0.0, fused=fused), Dropout(0.5, fused=fused).eval()):
        assert torch.equal(layer(x), x)
        assert torch.equal(layer(x, residual), residual + x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_adds_to_a_wider_residual_stream(fused: bool) -> None:
    layer = Dropout(0.25, fused=fused)
    branch = torch.ones(64, 33, dtype=torch.bfloat16)
    residual = torch.full((64, 33), 1 / 3)
    out = layer(branch, residual)
    assert out.dtype == torch.float32
    dropped = out - residual == 0
    assert 0.15 < dropped.float().mean() < 0.35
    # 4 / 3 is rounded to bfloat16 by PyTorch's dropout, which knows no residual.
    assert torch.allclose(out[~dropped], torch.tensor(1 / 3 + 4 / 3), rtol=2**-8)


def run_mlp(flags: dict[str, object], *, fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one MLP, the same weights whether fused or not."""
    config = ModelConfig(
        num_layers=1, hidden_size=12, num_attention_heads=2, max_position_embeddings=8, **flags
    )
    spec = dataclasses.replace(transformer_spec(config.resolved()), fused_activation_bias=fused)
    torch.manual_seed(3)
    layer = MLP(spec, dtype=torch.float64, device=None)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    out = layer(x)
    out.square().sum().backward()
    return out.detach(), {
        name: parameter.grad
        for name, parameter in layer.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("flags", [{}, {"swiglu": True}, {"geglu": True}], ids=str)
def test_bias_in_the_activation_changes_nothing(flags: dict[str, object]) -> None:
    out, grads = run_mlp(flags, fused=True)
    plain, plain_grads = run_mlp(flags, fused=False)
    assert torch.allclose(out, plain, rtol=1e-12)
    assert "linear_fc1.bias" in grads
    for name, grad in plain_grads.items():
        assert torch.allclose(grads[name], grad, rtol=1e-11, atol=1e-12), name


def test_flags_choose_the_plain_forms() -> None:
    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    positions = {"max_position_embeddings": 8}
    on = transformer_spec(ModelConfig(**sizes, **positions, swiglu=True).resolved())
    assert on.fused_dropout
    assert on.fused_activation_bias
    off = ModelConfig(
        **sizes, **positions, swiglu=True, bias_swiglu_fusion=False, bias_dropout_fusion=False
    )
    spec = transformer_spec(off.resolved())
    assert not spec.fused_dropout
    assert not spec.fused_activation_bias
