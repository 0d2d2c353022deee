"""Cross entropy against float64 PyTorch; a chunk boundary inside the batch."""

import pytest
import torch
import torch.nn.functional as F

from megacore.layers.cross_entropy import cross_entropy
from megacore.testing.tolerance import expect_close, twice_torch_error

# The last one needs several chunks of rows.
SHAPES = [(1, 2), (7, 101), (300, 4099)]


def _reference(logits, labels, weights, dtype):
    leaf = logits.detach().to(dtype).requires_grad_()
    loss = F.cross_entropy(leaf, labels, reduction="none")
    (loss * weights.to(dtype)).sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradient(shape, dtype):
    torch.manual_seed(1)
    leaf = (5 * torch.randn(shape)).to(dtype).requires_grad_()
    labels = torch.randint(0, shape[1], shape[:1])
    weights = torch.rand(shape[0])
    exact_loss, exact_grad = _reference(leaf, labels, weights, torch.float64)
    # What a user of PyTorch writes: float32 copies of the logits, a gradient in their dtype.
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    torch_loss, torch_grad = _reference(leaf, labels, weights, compute)
    torch_grad = torch_grad.to(dtype)

    loss = cross_entropy(leaf * 1, labels)
    assert loss.dtype == compute
    (loss * weights.to(compute)).sum().backward()
    if dtype == torch.float64:
        # PyTorch is the reference itself: each side has a few roundings of values up to 30.
        expect_close(loss, exact_loss, bound=1e-14)
        expect_close(leaf.grad, exact_grad, bound=1e-14)
        return
    expect_close(loss, exact_loss, bound=twice_torch_error(torch_loss, exact_loss))
    expect_close(leaf.grad, exact_grad, bound=twice_torch_error(torch_grad, exact_grad))


def test_in_half():
    torch.manual_seed(1)
    leaf = torch.randn(9, 50).half().requires_grad_()
    labels = torch.randint(0, 50, (9,))
    loss = cross_entropy(leaf * 1, labels, in_half=True)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss.half().float())
    exact = F.cross_entropy(leaf.detach().double(), labels, reduction="none")
    # A few roundings of a log-sum of about 4 in float16.
    expect_close(loss, exact, bound=4 * torch.finfo(torch.float16).eps * 4)
    loss.sum().backward()
    assert leaf.grad.dtype == torch.float16
    # float32 logits are not degraded.
    full = leaf.detach().float()
    assert torch.equal(cross_entropy(full.clone(), labels, in_half=True),
                       cross_entropy(full.clone(), labels))  # fmt: skip


def test_extreme_logits_stay_finite():
    leaf = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    loss = cross_entropy(leaf * 1, torch.tensor([1, 2]))
    loss.sum().backward()
    expect_close(loss, torch.tensor([2e4, torch.tensor(3.0).log().item()]), bound=1e-3)
    assert leaf.grad.isfinite().all()


def test_second_backward_is_refused():
    leaf = torch.randn(3, 4, requires_grad=True)
    loss = cross_entropy(leaf * 1, torch.tensor([0, 1, 2])).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()
