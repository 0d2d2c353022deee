"""Matrix products: values against float64, sums in float32, layouts, gradients, faults."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from megacore.ops.gemm import (
    grouped_matmul,
    is_native,
    matmul,
    matmul_add_,
    matmul_reference,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows, inner size, columns: ones, primes, empty ones, more than one block of the kernel.
SHAPES = [(1, 1, 1), (7, 13, 5), (1, 5, 3), (3, 4, 1), (0, 3, 4), (3, 0, 4), (517, 31, 1033)]


def error_bound(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of a product: a rounding to float32 for each term in any order, and one to `dtype`."""
    sizes = a.double().abs() @ b.double().abs()
    terms = max(1, a.shape[-1])
    exact = (a.double() @ b.double()).abs()
    return terms * 2.0**-24 * sizes + torch.finfo(dtype).eps / 2 * exact + 1e-7


def matrices(
    shape: tuple[int, int, int], dtype: torch.dtype, transposed: tuple[bool, bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    m, k, n = shape
    a = torch.randn(k, m).to(dtype).t() if transposed[0] else torch.randn(m, k).to(dtype)
    b = torch.randn(n, k).to(dtype).t() if transposed[1] else torch.randn(k, n).to(dtype)
    return a, b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_sum(shape, dtype):
    for transposed in itertools.product([False, True], repeat=2):
        a, b = matrices(shape, dtype, transposed)
        exact = a.double() @ b.double()
        bound = error_bound(a, b, dtype)
        assert ((matmul(a, b).double() - exact).abs() <= bound).all()
        wide = matmul(a, b, wide=True)
        assert wide.dtype == torch.float32
        assert ((wide.double() - exact).abs() <= error_bound(a, b, torch.float32)).all()
        start = torch.randn(exact.shape)
        total = start.clone()
        matmul_add_(total, a, b)
        matmul_add_(total, a, b)
        # Two products and two roundings of the sum.
        room = 2 * error_bound(a, b, torch.float32) + 2.0**-22 * (start.abs() + 2 * exact.abs())
        if not is_native(dtype, "cpu") and dtype != torch.float32:
            room = room + 2 * bound  # PyTorch rounds the product first
        assert ((total.double() - start.double() - 2 * exact).abs() <= room).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_follows_the_product(dtype):
    for m, k, n in [(5, 7, 11), (600, 16, 1100)]:
        a, b = matrices((m, k, n), dtype, (False, True))
        bias, residual = torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
        for gelu, wide in itertools.product([False, True], repeat=2):
            got = matmul(a, b, bias=bias, residual=residual, gelu=gelu, wide=wide)
            want = a.double() @ b.double() + bias.double()
            want = (F.gelu(want, approximate="tanh") if gelu else want) + residual.double()
            ours = (got.double() - want).abs().max()
            options = {"bias": bias, "residual": residual, "gelu": gelu, "wide": wide}
            theirs = (matmul_reference(a, b, **options).double() - want).abs().max()
            assert ours <= 2 * theirs + 1e-6
    bias_only = matmul(a, b, bias=bias)
    assert torch.equal(bias_only, matmul(a, b, bias=bias, residual=torch.zeros_like(residual)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_are_independent_products(dtype):
    a, b = torch.randn(3, 9, 5).to(dtype), torch.randn(3, 5, 4).to(dtype)
    want = torch.stack([matmul(x, y) for x, y in zip(a, b, strict=True)])
    assert torch.equal(matmul(a, b), want)
    swapped = a.transpose(0, 1).contiguous().transpose(0, 1)  # batches lie between the rows
    torch.testing.assert_close(matmul(swapped, b), want)
    total = torch.zeros(3, 9, 4)
    matmul_add_(total, a, b)
    torch.testing.assert_close(total.to(dtype), want)


def test_groups_of_rows():
    a, b = torch.randn(10, 6), torch.randn(3, 6, 4)
    got = grouped_matmul(a, b, [4, 0, 6])
    torch.testing.assert_close(got, torch.cat([a[:4] @ b[0], a[4:] @ b[2]]))
    with pytest.raises(RuntimeError, match="counts"):
        grouped_matmul(a, b, [4, 0, 5])


def test_gradients():
    leaves = [torch.randn(5, 7), torch.randn(7, 3), torch.randn(3), torch.randn(5, 3)]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    dout = torch.randn(5, 3)
    a, b, bias, residual = ours
    torch.ops.megacore.gemm(a, b, bias, residual, False, False).backward(dout)
    (exact[0] @ exact[1] + exact[2] + exact[3]).backward(dout.double())
    for x, y in zip(ours, exact, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="gelu"):
        torch.ops.megacore.gemm(a, b, None, None, True, False).sum().backward()


def test_reference_has_the_right_derivatives():
    a, b, bias, residual = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in [(3, 4), (4, 2), (2,), (3, 2)]
    )
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: matmul_reference(a, b, bias=c, residual=d, gelu=True),
        (a, b, bias, residual),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_is_a_good_citizen(dtype):
    a, b, bias = torch.randn(5, 7).to(dtype), torch.randn(7, 3).to(dtype), torch.randn(3).to(dtype)
    if is_native(dtype, "cpu"):
        torch.library.opcheck(torch.ops.megacore.gemm, (a, b, bias, None, False, True))
        torch.library.opcheck(torch.ops.megacore.gemm_add_, (torch.zeros(5, 3), a, b))


@pytest.mark.skipif(not is_native(torch.float32, "cpu"), reason="no library beside PyTorch")
@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 5), {}, r"\[3, 5\], found b: "),
        (torch.ones(2, 3), torch.ones(3, 5).bfloat16(), {}, "float32, found b: "),
        (torch.ones(4, 6)[::2, ::2], torch.ones(3, 5), {}, "a: expected a stride of 1"),
        (torch.ones(3), torch.ones(3, 5), {}, "a, b: expected two matrices"),
        (torch.ones(2, 3), torch.ones(3, 5), {"bias": torch.ones(4)}, r"\[5\], found bias: "),
        (
            torch.ones(2, 3),
            torch.ones(3, 5),
            {"residual": torch.ones(2, 4)},
            r"\[2, 5\], found residual: ",
        ),
    ],
)
def test_faults_name_the_tensor(a, b, options, message):
    with pytest.raises(RuntimeError, match=message):
        matmul(a, b, **options)


def test_sums_must_be_float32_and_fit():
    a, b = torch.ones(2, 3).bfloat16(), torch.ones(3, 5).bfloat16()
    with pytest.raises(RuntimeError):
        matmul_add_(torch.zeros(2, 4), a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_repetition(dtype):
    a, b = matrices((300, 64, 257), dtype, (False, True))
    total = [torch.zeros(300, 257) for _ in range(2)]
    for one in total:
        matmul_add_(one, a, b)
    assert torch.equal(*total)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = matmul(a, b)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(single, matmul(a, b))
