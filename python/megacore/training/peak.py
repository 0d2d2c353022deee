"""The peak speed that model FLOP utilisation (MFU) is relative to."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

PROBE_SIZE = 1024
PROBE_SECONDS = 0.25

# Dense matrix products (no structured sparsity), TFLOP/s: (half precision, fp32). NVIDIA data
# sheets; fp32 is the plain CUDA-core rate, since PyTorch leaves TF32 off for matmul.
_KNOWN_GPUS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 75.0),
    ("GH200", 989.4, 66.9),
    ("H200", 989.4, 66.9),
    ("H100 NVL", 835.5, 60.0),
    ("H100 PCIe", 756.0, 51.2),
    ("H100", 989.4, 66.9),
    ("A100", 312.0, 19.5),
    ("A800", 312.0, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165.0, 10.3),
    ("A10", 125.0, 31.2),
    ("L40S", 362.1, 91.6),
    ("L40", 181.1, 90.5),
    ("L4", 121.0, 30.3),
    ("V100", 125.0, 15.7),
    ("T4", 65.1, 8.1),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
)


@dataclass(frozen=True)
class Peak:
    """A peak speed and how it is known.

    Attributes:
        tflops: TFLOP/s of one device.
        source: Said beside every MFU figure.
    """

    tflops: float
    source: str


def peak_speed(device: torch.device, dtype: torch.dtype, *, given: float | None = None) -> Peak:
    """The peak of `device` for matrix products in `dtype`.

    Args:
        device: Where training runs.
        dtype: Dtype of the matrix products.
        given: TFLOP/s set by the user, which wins.
    """
    if given is not None:
        return Peak(given, "--peak-tflops")
    name = _dtype_name(dtype)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        for part, half, single in _KNOWN_GPUS:
            if part in gpu:
                tflops = single if dtype == torch.float32 else half
                return Peak(tflops, f"dense {name} of {gpu}, data sheet")
        return Peak(measure_peak(device, dtype), f"{name} matmul measured on {gpu}")
    threads = torch.get_num_threads()
    source = f"{name} matmul measured on this CPU, {threads} thread{'s' if threads != 1 else ''}"
    return Peak(measure_peak(device, dtype), source)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the fastest of several [1024, 1024] products, within about a quarter second.

    The random state is left as it was.
    """
    left = torch.linspace(-1, 1, PROBE_SIZE**2, device=device).view(PROBE_SIZE, -1).to(dtype)
    result = torch.empty_like(left)

    def one() -> float:
        started = time.perf_counter()
        torch.mm(left, left, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with torch.no_grad():
        one()
        best = one()
        deadline = time.perf_counter() + PROBE_SECONDS
        while time.perf_counter() < deadline:
            best = min(best, one())
    return 2.0 * PROBE_SIZE**3 / best / 1e12


def _dtype_name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
        dtype, str(dtype).removeprefix("torch.")
    )
