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
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
KERNELS_PATH = Path(__file__).resolve().parent.parent / "_ops.so"

_library = torch.library.Library(NAMESPACE, "DEF")

# Plain-PyTorch implementation of every op by name, and what puts them in place of the kernels.
_references: dict[str, Callable[..., Any]] = {}
_overrides: torch.library.Library | None = None


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
    key = _KEYS.get(device_type)
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
    _references[name] = reference
    if _overrides is not None:
        _override(_overrides, name)


def use_references(on: bool) -> None:
    """Let every op run its plain-PyTorch reference on all devices, or its kernel again.

    For the whole process; ops that are running or compiled keep what they have.

    Args:
        on: References instead of kernels.
    """
    global _overrides
    if on and _overrides is None:
        _overrides = torch.library.Library(NAMESPACE, "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered")
            for name in _references:
                _override(_overrides, name)
    elif not on and _overrides is not None:
        _overrides._destroy()
        _overrides = None


def _override(overrides: torch.library.Library, name: str) -> None:
    """Put the reference of an op before its kernels."""
    for device_type, key in _KEYS.items():
        if has_kernel(name, device_type):
            overrides.impl(name, _references[name], key, allow_override=True)


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
