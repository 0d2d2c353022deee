"""Memory and arithmetic of code that runs on meta tensors, which have shapes but no memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


@dataclass
class Use:
    """What a part of a program used.

    Attributes:
        kept_bytes: Memory in use after it, less that before it.
        peak_bytes: Most memory in use during it, less that before it.
        flops: Floating-point operations of matrix products and attention.
    """

    kept_bytes: int = 0
    peak_bytes: int = 0
    flops: int = 0


class Meter(TorchDispatchMode):
    """While active, knows the memory that tensors made since hold, and counts operations.

    Every operation that autograd or user code calls comes by here, also in backward. The memory of
    a tensor counts until nothing holds it any more, as in an allocator without rounding.

    Args:
        existing: Tensors that are there already; their memory is not counted.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._live = 0
        self._peak = 0
        self._flops = 0
        # By id of a storage that is alive; the entry goes before the id can be used again.
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in existing:
            self._note(tensor, counted=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = _flop_formula(func)
        if count is not None:
            self._flops += count(*args, **kwargs, out_val=out)
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._note(leaf, counted=True)
        return out

    @contextmanager
    def measure(self) -> Iterator[Use]:
        """Fills in the result at the end of the block."""
        use = Use()
        before, flops, outer_peak = self._live, self._flops, self._peak
        self._peak = before
        yield use
        use.kept_bytes = self._live - before
        use.peak_bytes = self._peak - before
        use.flops = self._flops - flops
        self._peak = max(self._peak, outer_peak)

    def _note(self, tensor: Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0

        def forget(_: object) -> None:
            self._live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self._live += size
        self._peak = max(self._peak, self._live)


def _flop_formula(func: Any) -> Any:
    """PyTorch's formula for an operation; the operations in place are those it leaves out."""
    packet = func._overloadpacket
    name = packet.__name__
    if name.endswith("_") and not name.startswith("_"):
        packet = getattr(torch.ops.aten, name.rstrip("_"), packet)
    return flop_registry.get(packet)
