"""The torch operator library `torch.ops.megacore`: schemas here, kernels in `megacore._ops`.

Schemas are defined in Python whether or not the compiled kernels are there. Without them, or on a
device they were not built for, an op runs its plain-PyTorch reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NAMESPACE = "megacore"
KERNELS_PATH = Path(__file__).resolve().parent.parent / "_ops.so"

_library = torch.library.Library(NAMESPACE, "DEF")


def _load_kernels() -> str:
    """Load the compiled kernels; returns "" or the reason why they are absent."""
    if not KERNELS_PATH.exists():
        return f"{KERNELS_PATH.name} was not built"
    try:
        torch.ops.load_library(str(KERNELS_PATH))
    except (OSError, RuntimeError) as error:
        return f"{KERNELS_PATH.name} does not load: {error}"
    return ""


# The reason why the compiled kernels are absent, or "".
kernels_missing: str = _load_kernels()
if kernels_missing:
    warnings.warn(
        f"megacore's compiled operations are not available ({kernels_missing}); "
        "plain PyTorch is used instead, which is slower. `megacore doctor` tells more.",
        RuntimeWarning,
        stacklevel=2,
    )


def has_kernel(name: str, device_type: str) -> bool:
    """Whether op `name` has a compiled kernel for a device type such as "cpu" or "cuda"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None or kernels_missing:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """Define an op and register what runs where there is no compiled kernel.

    Args:
        schema: torch schema without namespace, such as "f(Tensor x) -> Tensor".
        reference: Plain-PyTorch implementation with the same signature.
        fake: Shapes and dtypes of the result for tracing, same signature.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    # Composite: used for every device that has no kernel of its own.
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def register_autograd(
    name: str,
    backward: Callable[..., Any],
    *,
    setup_context: Callable[..., None],
) -> None:
    """Attach a backward formula to op `name` (see torch.library.register_autograd)."""
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library
    )
