"""A whole model by the compiled kernels, by their references, and with its losses fused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_gpt import ROTARY, batch, build
from torch import Tensor

from megacore.errors import ConfigError
from megacore.models.config import ModelConfig
from megacore.ops import library
from megacore.ops.norm import rms_norm, rms_norm_reference

DROPOUT = {"hidden_dropout": 0.2}


@pytest.fixture
def references() -> Iterator[None]:
    """Inside, ops run their references."""
    library.use_references(True)
    yield
    library.use_references(False)


def train(**changes: object) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of three steps of plain descent, and the gradients of the last one."""
    model = build(dtype=torch.float32, **changes)
    tokens, labels = batch()
    torch.manual_seed(5)
    losses = []
    for _ in range(3):
        model.zero_grad()
        loss = model(tokens, labels=labels).mean()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def expect_equal(
    one: tuple[list[float], dict[str, Tensor]], other: tuple[list[float], dict[str, Tensor]]
) -> None:
    """Equal but for roundings of float32, which three steps let grow."""
    assert one[0] == pytest.approx(other[0], rel=2e-5)
    for name, grad in one[1].items():
        assert (grad - other[1][name]).norm() <= 2e-4 * grad.norm() + 1e-7, name


def test_references_take_the_place_of_kernels_and_leave_it(references: None) -> None:
    x, weight = torch.randn(7, 1001), torch.randn(1001)
    assert torch.equal(rms_norm(x, weight, eps=1e-5), rms_norm_reference(x, weight, eps=1e-5))
    assert library._overrides is not None
    library.use_references(True)  # changes nothing
    library.use_references(False)
    assert library._overrides is None
    library.use_references(True)
    assert torch.equal(rms_norm(x, weight, eps=1e-5), rms_norm_reference(x, weight, eps=1e-5))


@pytest.mark.parametrize("flags", [DROPOUT, ROTARY | DROPOUT], ids=["gpt", "llama"])
def test_training_by_references_is_training_by_kernels(
    flags: dict[str, object], request: pytest.FixtureRequest
) -> None:
    native = train(**flags)
    request.getfixturevalue("references")
    # Dropout too: its numbers are those of a seed.
    expect_equal(native, train(**flags))


@pytest.mark.parametrize("flags", [{}, ROTARY], ids=["tied", "untied"])
def test_fused_losses_change_nothing(flags: dict[str, object]) -> None:
    expect_equal(train(**flags), train(cross_entropy_fusion_impl="linear", **flags))


def test_fused_losses_refuse_what_changes_logits() -> None:
    config = ModelConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=1,
        max_position_embeddings=8,
        cross_entropy_fusion_impl="linear",
        final_logit_softcapping=3.0,
    )
    with pytest.raises(ConfigError, match="MC1230"):
        config.resolved()
