"""Weight gradients computed later, against autograd's."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megacore.ops.linear import weight_product
from megacore.parallel.weight_grad import WeightGradStore, linear

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPE = (3, 5, 7)  # [..., in], to 11 outputs


def tensors(dtype: torch.dtype) -> tuple[Tensor, nn.Parameter, nn.Parameter, Tensor]:
    """Small integers, whose products and sums every dtype holds exactly here."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)

    x = draw(*SHAPE).requires_grad_()
    return x, nn.Parameter(draw(11, 7)), nn.Parameter(draw(11)), draw(3, 5, 11)


def gradients(dtype: torch.dtype, with_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight, bias, dy = tensors(dtype)
    F.linear(x, weight, bias if with_bias else None).backward(dy)
    assert x.grad is not None
    assert weight.grad is not None
    return x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("deferred", [True, False])
def test_equals_autograd(dtype: torch.dtype, with_bias: bool, deferred: bool) -> None:
    dx, dweight, dbias = gradients(dtype, with_bias)
    ready: list[nn.Parameter] = []
    store = WeightGradStore(ready.append)
    x, weight, bias, dy = tensors(dtype)
    y = linear(x, weight, bias if with_bias else None, store)
    assert torch.equal(y, F.linear(x, weight, bias if with_bias else None))
    if deferred:
        with store.deferring(1, 2):
            y.backward(dy)
        assert weight.grad is None
        assert len(store) == 1
        store.run(1, 2)
        assert [id(p) for p in ready] == [id(weight)]
    else:
        y.backward(dy)
        assert not ready  # autograd's own hooks tell
    assert len(store) == 0
    assert not store.is_deferring
    assert torch.equal(x.grad, dx)
    assert torch.equal(weight.grad, dweight)
    assert (bias.grad is None) if dbias is None else torch.equal(bias.grad, dbias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adds_to_the_main_gradient(dtype: torch.dtype) -> None:
    _, dweight, _ = gradients(dtype, True)
    store = WeightGradStore()
    x, weight, bias, dy = tensors(dtype)
    main = torch.float64 if dtype == torch.float64 else torch.float32
    weight.main_grad = torch.ones(11, 7, dtype=main)
    for microbatch in range(3):
        with store.deferring(0, microbatch):
            linear(x, weight, bias, store).backward(dy)
    for microbatch in (2, 0, 1):
        store.run(0, microbatch)
    assert weight.grad is None
    assert torch.equal(weight.main_grad, 1 + 3 * dweight.to(main))


def test_adds_to_an_existing_gradient_in_place() -> None:
    _, dweight, _ = gradients(torch.float32, True)
    x, weight, bias, dy = tensors(torch.float32)
    total = weight.grad = torch.full((11, 7), 2.0)
    store = WeightGradStore()
    with store.deferring(0, 0):
        linear(x, weight, bias, store).backward(dy)
    store.run(0, 0)
    assert weight.grad is total
    assert torch.equal(total, 2 + dweight)


def test_frozen_weight_and_input_without_gradient() -> None:
    store = WeightGradStore()
    x, weight, bias, dy = tensors(torch.float64)
    weight.requires_grad_(False)
    with store.deferring(0, 0):
        linear(x, weight, bias, store).backward(dy)
    store.run(0, 0)
    assert weight.grad is None
    dx, dweight, _ = gradients(torch.float64, True)
    assert torch.equal(x.grad, dx)
    weight.requires_grad_(True)
    with store.deferring(0, 0):
        linear(x.detach(), weight, bias, store).backward(dy)
    store.run(0, 0)
    assert torch.equal(weight.grad, dweight)


def test_others_may_leave_their_own_computation() -> None:
    store = WeightGradStore()
    weight = nn.Parameter(torch.zeros(2, 2))
    with store.deferring(0, 0):
        store.defer(weight, lambda: torch.full((2, 2), 3.0))
        store.defer(weight, lambda: torch.full((2, 2), 4.0))
    store.run(0, 0)
    assert torch.equal(weight.grad, torch.full((2, 2), 7.0))


def test_tensors_are_released() -> None:
    store = WeightGradStore()
    x, weight, bias, dy = tensors(torch.float32)
    activations = [weakref.ref(x), weakref.ref(dy)]
    with store.deferring(0, 0):
        linear(x, weight, bias, store).backward(dy)
    del x, dy
    assert any(ref() is not None for ref in activations)
    store.run(0, 0)
    assert all(ref() is None for ref in activations)
    with pytest.raises(KeyError):
        store.run(0, 0)


def test_a_failed_backward_pass_ends_deferring() -> None:
    store = WeightGradStore()
    x, weight, bias, _ = tensors(torch.float32)
    with pytest.raises(RuntimeError), store.deferring(0, 0):
        linear(x, weight, bias, store).backward(torch.zeros(1))
    assert not store.is_deferring
    store.clear()
    assert len(store) == 0


def test_weight_gradient_in_float64() -> None:
    x, _, _, dy = tensors(torch.float64)
    wanted = torch.einsum("bsi,bso->oi", x.detach(), dy)
    assert torch.equal(weight_product(x.detach(), dy), wanted)
