"""Recomputed activations give bitwise the results of kept ones, dropout included."""

import pytest
import torch
from small_gpt import ROTARY, batch, build, gradients

from megacore.errors import ConfigError
from megacore.models.config import RecomputeConfig

CHOICES = {
    "selective": {"recompute_granularity": "selective"},
    "shorthand": {"recompute_activations": True},
    "uniform-1": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
    "uniform-2": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 2,
    },
    "block-2": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 2,
    },
    "block-9": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 9,
    },
}


def _step(recompute, settings, dtype, cu_seqlens=None):
    model = build(dtype=dtype, recompute=recompute, **settings)
    tokens, labels = batch()
    torch.manual_seed(11)
    losses = []
    for _ in range(2):
        loss = model(tokens, labels=labels, cu_seqlens=cu_seqlens)
        loss.mean().backward()
        losses.append(loss.detach())
    return losses, gradients(model), torch.get_rng_state()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_bitwise_equal(choice, dtype, dropout):
    settings = ROTARY | {"attention_dropout": dropout, "hidden_dropout": dropout}
    losses, grads, state = _step(None, settings, dtype)
    losses_r, grads_r, state_r = _step(RecomputeConfig(**CHOICES[choice]), settings, dtype)
    assert all(torch.equal(a, b) for a, b in zip(losses, losses_r, strict=True))
    for name, grad in grads.items():
        assert torch.equal(grad, grads_r[name]), name
    assert torch.equal(state, state_r)


@pytest.mark.parametrize("choice", ["selective", "uniform-2"])
def test_bitwise_equal_with_packed_documents(choice):
    cu_seqlens = torch.tensor([0, 4, 17, 18, 34, 40, 51], dtype=torch.int32)
    settings = {"attention_dropout": 0.3}
    _, grads, _ = _step(None, settings, torch.float32, cu_seqlens)
    _, grads_r, _ = _step(RecomputeConfig(**CHOICES[choice]), settings, torch.float32, cu_seqlens)
    assert all(torch.equal(grad, grads_r[name]) for name, grad in grads.items())


def test_layers_really_run_again():
    calls = []
    model = build(recompute=RecomputeConfig(**CHOICES["block-2"]))
    for index, layer in enumerate(model.decoder.layers.values()):
        layer.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    tokens, labels = batch()
    model(tokens, labels=labels).mean().backward()
    assert calls == [0, 1, 2, 1, 0]


def test_full_needs_a_method():
    with pytest.raises(ConfigError, match="MC0151"):
        build(recompute=RecomputeConfig(recompute_granularity="full"))
