"""Losses of every token without their logits: against all logits, and what memory it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megacore.ops.cross_entropy import LossTerms, cross_entropy_reference
from megacore.ops.linear_cross_entropy import CHUNKS, linear_token_losses
from megacore.testing.tolerance import expect_close, twice_torch_error

TERMS = {
    "plain": LossTerms(),
    "all": LossTerms(label_smoothing=0.1, z_loss=1e-2, ignore_index=-100),
}


def problem(
    count: int, dtype: torch.dtype, *, width: int = 13, words: int = 37
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, labels, and factors of the losses."""
    torch.manual_seed(count)
    hidden = torch.randn(count, width, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(words, width, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, words, (count,)), torch.rand(count)


def with_logits(
    hidden: Tensor, weight: Tensor, labels: Tensor, factors: Tensor, terms: LossTerms
) -> list[Tensor]:
    """Losses and gradients by way of all logits."""
    losses = cross_entropy_reference(hidden @ weight.t(), labels, terms=terms)
    return [losses, *torch.autograd.grad((losses * factors).sum(), (hidden, weight))]


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
def test_equals_the_losses_of_all_logits(count: int, dtype: torch.dtype, kind: str) -> None:
    terms = TERMS[kind]
    hidden, weight, labels, factors = problem(count, dtype)
    if terms.ignore_index is not None:
        labels[0] = terms.ignore_index
    losses = linear_token_losses(hidden, weight, labels, terms=terms)
    found = [losses, *torch.autograd.grad((losses * factors).sum(), (hidden, weight))]
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact = with_logits(wide[0], wide[1], labels, factors.double(), terms)
    torchs = with_logits(hidden, weight, labels, factors, terms)
    for name, ours, theirs, want in zip(
        ("losses", "dhidden", "dweight"), found, torchs, exact, strict=True
    ):
        bound = 1e-12 if dtype == torch.float64 else twice_torch_error(theirs, want)
        if dtype == torch.bfloat16:
            # The gradient of the logits is rounded, whose largest element is a factor of at most 1.
            bound += 2**-8 * want.abs().max().item()
        expect_close(ours, want, bound=bound, name=name)


def test_no_tokens() -> None:
    hidden, weight, labels, _ = problem(0, torch.float32)
    losses = linear_token_losses(hidden, weight, labels)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, labels, _ = problem(5, torch.float32)
    linear_token_losses(hidden, weight.detach(), labels).sum().backward()
    assert hidden.grad is not None


class Largest(TorchDispatchMode):
    """Remembers the largest number of elements that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("count", [160, 167])
def test_only_a_sixteenth_of_the_logits_is_ever_there(count: int) -> None:
    # A vocabulary so large that the weight is smaller than a sixteenth of the logits.
    hidden, weight, labels, _ = problem(count, torch.float32, width=3, words=2000)
    with Largest() as largest:
        linear_token_losses(hidden, weight, labels).sum().backward()
    assert largest.numel == 2000 * -(-count // CHUNKS)


def test_faults_name_the_tensors() -> None:
    hidden, weight, labels, _ = problem(4, torch.float32)
    with pytest.raises(RuntimeError, match=r"found hidden: \[4, 13\], weight: \[37, 12\]"):
        linear_token_losses(hidden, weight[:, 1:], labels)
    with pytest.raises(RuntimeError, match="labels: expected numbers in"):
        linear_token_losses(hidden, weight, labels + 37)
