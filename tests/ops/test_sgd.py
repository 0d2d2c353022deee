"""ops/sgd: against PyTorch's optimizer, in float64 and in the kernel's float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megacore.ops import library
from megacore.ops.sgd import sgd_reference, sgd_step

OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.2, "grad_scale": 0.25},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "grad_scale": 2.0},
]


def problem(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(3, size, generator=generator, dtype=torch.float64)
    param, grad, buffer = (row.to(dtype).clone() for row in values)
    return param, grad, buffer


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "decay", "momentum"])
def test_reference_is_torchs_optimizer(options: dict[str, float]) -> None:
    param, grad, _ = problem(37, torch.float64)
    theirs = torch.nn.Parameter(param.clone())
    scale = options.get("grad_scale", 1.0)
    known = {name: value for name, value in options.items() if name != "grad_scale"}
    optimizer = torch.optim.SGD([theirs], **known)
    buffer = torch.zeros_like(param) if "momentum" in options else None
    for _ in range(3):
        theirs.grad = grad * scale
        optimizer.step()
        sgd_reference(param, grad, buffer, **options)
        assert torch.allclose(param, theirs, rtol=1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "decay", "momentum"])
@pytest.mark.parametrize("copy", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0, 1, 17, 4099])
def test_kernel_against_float64(
    size: int, copy: torch.dtype | None, options: dict[str, float]
) -> None:
    assert library.has_kernel("sgd_step", "cpu")
    param, grad, buffer = problem(size, torch.float32)
    exact = [tensor.double() for tensor in (param, grad, buffer)]
    model = None if copy is None else torch.empty(size, dtype=copy)
    has_buffer = "momentum" in options
    sgd_step(param, grad, buffer if has_buffer else None, model_param=model, **options)
    sgd_reference(exact[0], exact[1], exact[2] if has_buffer else None, **options)
    # Roundings of each product and sum; the terms are sums of 3 normal numbers times less than 3.
    assert torch.allclose(param.double(), exact[0], rtol=2**-23, atol=8 * 2**-24)
    if has_buffer:
        assert torch.allclose(buffer.double(), exact[2], rtol=2**-23, atol=24 * 2**-24)
    if model is not None:
        assert torch.equal(model, param.to(model.dtype))


def test_one_and_two_threads_agree() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            param, grad, buffer = problem(100_003, torch.float32)
            sgd_step(param, grad, buffer, lr=0.1, momentum=0.9)
            results.append(param)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_faults_name_the_tensor() -> None:
    param, grad, buffer = problem(8, torch.float32)
    with pytest.raises(RuntimeError, match=r"expected shape \[8\], found grad"):
        sgd_step(param, grad[:7], lr=0.1)
    with pytest.raises(RuntimeError, match="momentum_buffer: needed"):
        sgd_step(param, grad, lr=0.1, momentum=0.5)
    with pytest.raises(RuntimeError, match=r"momentum: expected \[0, 1\)"):
        sgd_step(param, grad, buffer, lr=0.1, momentum=1.0)


def test_schema_and_shapes() -> None:
    param, grad, buffer = problem(16, torch.float32)
    torch.library.opcheck(
        torch.ops.megacore.sgd_step, (param, buffer, None, grad, 0.1, 0.9, 0.0, 1.0)
    )
