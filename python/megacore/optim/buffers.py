"""Flat, contiguous storage of one parameter group.

Every parameter of the group becomes a view into one buffer of its own dtype, and owns the same
range of an fp32 gradient buffer. For low-precision groups there is an fp32 copy of the parameters
too; for fp32 groups the model parameters *are* the main parameters. One buffer means one kernel
launch per group for the update, and one reduction for the norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megacore.optim.groups import ParamGroup

# Parameters start at multiples of this many elements, so that the first one is not the only one
# whose vector loads are aligned. The gaps hold zeros and stay zero under every update rule here.
ALIGNMENT = 64


@dataclass(frozen=True)
class Slot:
    """The range of a flat buffer that one parameter owns."""

    name: str
    offset: int
    shape: torch.Size

    def view(self, flat: Tensor) -> Tensor:
        """The parameter-shaped view of its range in `flat`."""
        return flat[self.offset : self.offset + self.shape.numel()].view(self.shape)


class FlatGroup:
    """Parameters, fp32 main parameters and fp32 gradients of one group.

    Attributes:
        group: The group that was flattened.
        slots: One range per parameter, in order.
        model_flat: [n] parameters in the dtype of the model; the parameters are views of it.
        main_flat: [n] float32 main parameters; the same memory as `model_flat` for fp32.
        grad_flat: [n] float32 sums of gradients since the last `zero_grad`.
        num_padding: Elements of the buffers that belong to no parameter.
    """

    def __init__(self, group: ParamGroup) -> None:
        self.group = group
        self.slots: list[Slot] = []
        offset = 0
        for name, param in zip(group.names, group.params, strict=True):
            self.slots.append(Slot(name, offset, param.shape))
            offset += -(-param.numel() // ALIGNMENT) * ALIGNMENT
        device = group.params[0].device
        elsewhere = [
            f"{name} on {param.device}"
            for name, param in zip(group.names, group.params, strict=True)
            if param.device != device
        ]
        if elsewhere:
            raise ValueError(f"parameters of one group must share {device}: {', '.join(elsewhere)}")
        self.num_padding = offset - sum(param.numel() for param in group.params)
        self.model_flat = torch.zeros(offset, dtype=group.dtype, device=device)
        with torch.no_grad():
            for slot, param in zip(self.slots, group.params, strict=True):
                view = slot.view(self.model_flat)
                view.copy_(param)
                param.data = view
        self.is_fp32 = group.dtype == torch.float32
        self.main_flat = self.model_flat if self.is_fp32 else self.model_flat.float()
        self.grad_flat = torch.zeros(offset, dtype=torch.float32, device=device)
        self._grad_views = [slot.view(self.grad_flat) for slot in self.slots]
        if not self.is_fp32:
            self._hook_gradients()

    def _hook_gradients(self) -> None:
        # Autograd leaves a low-precision gradient in .grad; adding it to the fp32 sum as soon as it
        # is complete frees it before the next one is made, so at most a few are ever alive.
        for param, main_grad in zip(self.group.params, self._grad_views, strict=True):

            def accumulate(leaf: Tensor, main_grad: Tensor = main_grad) -> None:
                if leaf.grad is not None:
                    main_grad.add_(leaf.grad)
                    leaf.grad = None

            param.register_post_accumulate_grad_hook(accumulate)

    def zero_grad(self) -> None:
        """Sets the gradient sums to zero, without releasing their memory."""
        self.grad_flat.zero_()
        for param, view in zip(self.group.params, self._grad_views, strict=True):
            # fp32: autograd adds in place to a .grad that is there, which is the flat buffer.
            param.grad = view if self.is_fp32 else None

    def check_gradients(self) -> None:
        """Makes sure that nobody replaced the gradient views of an fp32 group.

        Raises:
            RuntimeError: A `.grad` no longer lies in the flat buffer; its gradients would be lost.
        """
        if not self.is_fp32:
            return
        for name, param, view in zip(
            self.group.names, self.group.params, self._grad_views, strict=True
        ):
            if param.grad is None or param.grad.data_ptr() != view.data_ptr():
                raise RuntimeError(
                    f"the gradient of {name} does not lie in the optimizer's buffer: call the "
                    "optimizer's zero_grad() before backward, and leave .grad in place"
                )

    def refresh_main(self) -> None:
        """Takes the main parameters from the model parameters (after weights were loaded)."""
        if not self.is_fp32:
            self.main_flat.copy_(self.model_flat)

    def refresh_model(self) -> None:
        """Rounds the main parameters to the model parameters (after main ones were loaded)."""
        if not self.is_fp32:
            self.model_flat.copy_(self.main_flat)

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and parameter-shaped view of every range of a buffer laid out like this group."""
        for slot in self.slots:
            yield slot.name, slot.view(flat)
