"""The gradient of an embedding lookup against float64: repeats, absent rows, any dtype."""

from __future__ import annotations

import itertools

import pytest
import torch

from megacore.ops.embedding import embedding, embedding_reference
from megacore.ops.linear import add_gradients_to

# V, H, shape of the tokens
SHAPES = [(1, 1, (1,)), (7, 3, (5, 4)), (50, 64, (2, 131)), (1003, 33, (70,)), (5, 16, (900,))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def problem(shape, dtype, seed=0):
    rows, width, tokens = shape
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, width, generator=generator).to(dtype)
    indices = torch.randint(rows, tokens, generator=generator)
    dout = torch.randn(*tokens, width, generator=generator).to(dtype)
    return table, indices, dout


def run(function, table, indices, dout):
    leaf = table.detach().clone().requires_grad_()
    out = function(leaf, indices)
    out.backward(dout)
    return out.detach(), leaf.grad


@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)))
def test_rows_and_gradient(shape, dtype):
    table, indices, dout = problem(shape, dtype)
    out, grad = run(embedding, table, indices, dout)
    assert torch.equal(out, table[indices])
    _, exact = run(embedding_reference, table.double(), indices, dout.double())
    assert grad.dtype == dtype
    # A float32 sum of so many terms, and one rounding to the dtype.
    _, sizes = run(embedding_reference, table.double(), indices, dout.double().abs())
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + indices.numel() ** 0.5 * 2.0**-24 * sizes
    assert ((grad.double() - exact).abs() <= bound).all()


def test_a_frequent_token_in_a_low_precision():
    table = torch.zeros(3, 2, dtype=torch.bfloat16)
    _, grad = run(
        embedding, table, torch.ones(4096, dtype=torch.int64), torch.ones(4096, 2).bfloat16()
    )
    assert grad.tolist() == [[0, 0], [4096, 4096], [0, 0]]


def test_no_tokens_and_no_columns():
    _, grad = run(embedding, torch.ones(4, 3), torch.empty(0, dtype=torch.int64), torch.empty(0, 3))
    assert torch.equal(grad, torch.zeros(4, 3))
    out, grad = run(embedding, torch.ones(4, 0), torch.tensor([1, 2]), torch.empty(2, 0))
    assert out.shape == (2, 0)
    assert grad.shape == (4, 0)


def test_the_order_of_equal_tokens_decides_the_bits_and_nothing_else_does():
    table, indices, dout = problem((50, 64, (2, 131)), torch.float32)
    before = torch.get_num_threads()
    grads = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            grads.append(run(embedding, table, indices, dout)[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*grads)
    # One after the other, as a loop over the tokens adds them.
    total = torch.zeros_like(table)
    for index, row in zip(indices.flatten(), dout.flatten(0, 1), strict=True):
        total[index] += row
    assert torch.equal(grads[0], total)


@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)))
def test_a_gradient_that_is_added_to_a_sum(shape, dtype):
    table, indices, dout = problem(shape, dtype)
    before = torch.randn(table.shape, generator=torch.Generator().manual_seed(7))
    leaf, total, told = torch.nn.Parameter(table.clone()), before.clone(), []
    add_gradients_to(leaf, total)
    leaf.register_post_accumulate_grad_hook(told.append)
    out = embedding(leaf, indices)
    assert torch.equal(out, table[indices])
    out.backward(dout)
    assert leaf.grad is None
    assert len(told) == 1
    assert told[0] is leaf
    _, exact = run(embedding_reference, table.double(), indices, dout.double())
    _, sizes = run(embedding_reference, table.double(), indices, dout.double().abs())
    expected = before.double() + exact
    bound = 2.0**-24 * (expected.abs() + indices.numel() ** 0.5 * sizes)
    assert ((total.double() - expected).abs() <= bound).all()
    # Rows that no token took keep their bits.
    others = torch.ones(table.shape[0], dtype=torch.bool)
    others[indices.flatten()] = False
    assert torch.equal(total[others], before[others])


def test_a_table_with_several_lookups_is_complete_once():
    leaf, told = torch.nn.Parameter(torch.ones(3, 2)), []
    total = torch.zeros(3, 2)
    add_gradients_to(leaf, total)
    leaf.register_post_accumulate_grad_hook(lambda _: told.append(total.tolist()))
    (embedding(leaf, torch.tensor([0, 2])) + embedding(leaf, torch.tensor([0, 0]))).sum().backward()
    assert leaf.grad is None
    assert told == [[[3, 3], [0, 0], [1, 1]]]


def test_faults():
    with pytest.raises(IndexError):
        embedding(torch.ones(3, 2), torch.tensor([3]))
    with pytest.raises(RuntimeError, match="found order: int64 \\[2\\]"):
        torch.ops.megacore.embedding_gradient(
            torch.ones(3, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1]), 4
        )


def test_opcheck():
    table, indices, dout = problem((7, 3, (5, 4)), torch.float32)
    torch.library.opcheck(torch.ops.megacore.embedding.default, (table.requires_grad_(), indices))
    ascending, order = torch.sort(indices.flatten(), stable=True)
    total = torch.zeros(7, 3)
    torch.library.opcheck(
        torch.ops.megacore.embedding_gradient_add_.default,
        (total, dout.flatten(0, 1), ascending, order),
    )
    torch.library.opcheck(
        torch.ops.megacore.embedding_gradient.default, (dout.flatten(0, 1), ascending, order, 7)
    )
