"""Softmax with scale and masks: against float64, its gradient, faults."""

from __future__ import annotations

import itertools

import pytest
import torch

from megacore.ops.softmax import seen, softmax, softmax_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (2, 2, 33, 64), (1, 2, 3, 5000)]
RULES = [
    {},
    {"scale": 0.3},
    {"causal": True, "offset": 2},
    {"causal": True, "offset": 30, "window": 13, "scale": 2.0},
]


def inputs(shape, dtype, masked, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator) * 4).to(dtype)
    dout = torch.randn(shape, generator=generator).to(dtype)
    mask = None
    if masked:
        mask = torch.rand(shape[0], 1, shape[2], shape[3], generator=generator) < 0.3
        mask[:, :, -1] = True  # a row that sees nothing
    return x, mask, dout


def pytorch(x, mask, *, scale=1.0, causal=False, offset=0, window=None):
    """PyTorch's own operations in the dtype of x."""
    hidden = torch.zeros(x.shape, dtype=torch.bool) if mask is None else mask.expand(x.shape)
    if causal:
        hidden = hidden | ~seen(x.shape[-2], x.shape[-1], offset, window or 0, x.device)
    scores = (x * scale).masked_fill(hidden, torch.finfo(x.dtype).min)
    return scores.softmax(-1).masked_fill(hidden, 0.0)


def run(function, x, mask, dout, **rule):
    leaf = x.detach().clone().requires_grad_()
    y = function(leaf, mask, **rule)
    y.backward(dout)
    return y.detach(), leaf.grad


@pytest.mark.parametrize(
    ("dtype", "masked", "rule"), list(itertools.product(DTYPES, [False, True], RULES)), ids=str
)
def test_at_most_twice_the_error_of_pytorch(dtype, masked, rule):
    for shape in SHAPES:
        x, mask, dout = inputs(shape, dtype, masked)
        exact = run(softmax_reference, x.double(), mask, dout.double(), **rule)
        theirs = run(pytorch, x, mask, dout, **rule)
        ours = run(softmax, x, mask, dout, **rule)
        for got, peer, want in zip(ours, theirs, exact, strict=True):
            bound = 2 * (peer.double() - want).abs().max() + torch.finfo(torch.float32).eps
            assert (got.double() - want).abs().max() <= bound


def test_rows_that_see_nothing_are_zeros():
    x, mask, dout = inputs((2, 3, 5, 7), torch.float32, True)
    y, dx = run(softmax, x, mask, dout)
    assert torch.equal(y[:, :, -1], torch.zeros(2, 3, 7))
    assert torch.equal(dx[:, :, -1], torch.zeros(2, 3, 7))


def test_masks_of_all_shapes_and_strides():
    x = torch.randn(2, 3, 5, 7)
    for shape in itertools.product((1, 2), (1, 3), (1, 5), (7,)):
        mask = torch.rand(shape) < 0.4
        expected = softmax_reference(x, mask)
        torch.testing.assert_close(softmax(x, mask), expected)
        strided = mask.transpose(-1, -2).contiguous().transpose(-1, -2)
        torch.testing.assert_close(softmax(x, strided), expected)
        torch.testing.assert_close(softmax(x, mask.expand(2, 3, 5, 7)), expected)


def test_the_number_of_threads_does_not_change_a_bit():
    x = torch.randn(4, 5, 33, 700)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(softmax, x, None, x, causal=True, offset=600))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_reference_has_the_right_derivatives():
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([False, True, False, False, False]).expand(1, 1, 3, 5)
    assert torch.autograd.gradcheck(
        lambda x: softmax_reference(x, mask, scale=0.5, causal=True, offset=1), (x,)
    )


def test_faults():
    x = torch.randn(2, 3, 5, 7)
    with pytest.raises(RuntimeError, match=r"or ones, found mask: bool \[2, 1, 4, 7\]"):
        softmax(x, torch.zeros(2, 1, 4, 7, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="found mask: float32"):
        softmax(x, torch.zeros(2, 1, 5, 7))
    with pytest.raises(RuntimeError, match="window: only with causal"):
        softmax(x, window=3)


def test_opcheck():
    x, mask, dout = inputs((2, 3, 5, 7), torch.float32, True)
    x.requires_grad_()
    torch.library.opcheck(torch.ops.megacore.softmax_forward.default, (x, mask, 0.5, True, 1, 4))
    torch.library.opcheck(
        torch.ops.megacore.softmax_backward.default, (dout, x.detach(), 0.5, False, 0, 0)
    )
