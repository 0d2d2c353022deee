"""Flat storage of parameters, gradients and optimizer state, in buckets.

The parameters of one dtype and chunk of the model become views into one buffer, in the order in
which backward completes their gradients, and own the same ranges of a gradient buffer. Buckets
divide both: a bucket is what is reduced or gathered at once. Inside a bucket parameters of equal
treatment lie together, so that an update needs one kernel per bucket and group.

With a sharded optimizer each of d processes owns a d-th of every bucket, and only for that has
main parameters and state.

Source of the sharding: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models" (2020), section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megacore.ops.linear import add_gradients_to
from megacore.optim.groups import GroupKey, TrainedParam
from megacore.parallel.groups import Group

# Dtypes in which parameters are updated directly, without a copy of higher precision.
FULL_PRECISION = (torch.float32, torch.float64)

# Attribute of parameters under which other ways of computing gradients find their sums.
MAIN_GRAD = "main_grad"


@dataclass(frozen=True, order=True)
class Treatment:
    """What parameters that lie together have in common.

    Attributes:
        key: Their rates.
        counted: Norms and counts of this process take them.
        partial: Their gradients are summed over the tensor-parallel processes.
        replicated: Every tensor-parallel process has all of them. Not used, but makes the
            order of the parameters the same on all of those processes.
    """

    key: GroupKey
    counted: bool
    partial: bool
    replicated: bool

    @classmethod
    def of(cls, param: TrainedParam) -> Treatment:
        """How a parameter is treated."""
        layout = param.layout
        return cls(param.key, param.counted, layout.partial_grad, not layout.is_sharded)

    @property
    def order(self) -> tuple[object, ...]:
        """What treatments are sorted by; the same on all tensor-parallel processes."""
        return (self.key, self.partial, self.replicated)


@dataclass(frozen=True)
class Run:
    """Neighbours in this process's part of a bucket that are treated alike.

    Attributes:
        part: Their range in the part, with the gaps between them.
        treatment: How they are treated.
        num_padding: Elements of the range that belong to no parameter.
    """

    part: slice
    treatment: Treatment
    num_padding: int


@dataclass(frozen=True)
class OwnPiece:
    """The part of a parameter that lies in this process's part of a bucket.

    Attributes:
        param: The parameter.
        start: First element of the flattened parameter.
        count: Number of elements.
        part: Their range in the process's part of the bucket.
    """

    param: TrainedParam
    start: int
    count: int
    part: slice


class Bucket:
    """Parameters that are reduced, updated and gathered together.

    "Own" is the part that this process updates: all of it without a sharded optimizer.

    Attributes:
        params: In the order in which they lie.
        offsets: First element of each.
        model: [n] parameters in the dtype of the model; `param.data` are views of it.
        grad: [n] sums of gradients.
        own: The range of this process's part.
        main: [n / d] own main parameters: float32, or the model's own for full precision.
        main_grad: [n / d] own gradients in the dtype of `main`.
        state: State of the update rule by name, each [n / d] like `main`.
        runs: The own part by treatment.
        pieces: The own part by parameter.
        main_is_model: Whether the main parameters are those of the model.
        grad_is_leaf: Whether `param.grad` are views of `grad`.
        counted: Ranges of the own part that norms and counts of this process take.
        num_padding: Elements in them that belong to no parameter.
        shares_parameters: Whether `model` is here only while it is used.
        is_here: Whether `model` has memory now.
        has_open_sums: Whether `grad` has memory now.
    """

    shares_parameters = False
    is_here = True
    has_open_sums = True

    def __init__(
        self,
        params: Sequence[TrainedParam],
        offsets: Sequence[int],
        *,
        model: Tensor,
        grad: Tensor,
        own: slice,
        main: Tensor,
        main_grad: Tensor,
        main_is_model: bool,
        runs: Sequence[Run],
        pieces: Sequence[OwnPiece],
    ) -> None:
        self.params = tuple(params)
        self.offsets = tuple(offsets)
        self.model = model
        self.grad = grad
        self.own = own
        self.main = main
        self.main_grad = main_grad
        self.state: dict[str, Tensor] = {}
        self.runs = tuple(runs)
        self.pieces = tuple(pieces)
        self.main_is_model = main_is_model
        # Autograd adds in place to a .grad that is there, which is then a view of the buffer. Into
        # a buffer of another dtype each gradient is added by a hook, and freed, when it is made.
        self.grad_is_leaf = model.dtype == grad.dtype
        self._grad_views = [view for _, view in self.views(grad)]
        self.counted, self.num_padding = _counted(self.runs)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters themselves, in the order in which they lie."""
        return tuple(param.param for param in self.params)

    @property
    def size(self) -> int:
        """Elements of the whole bucket, with its padding."""
        return self.model.numel()

    @property
    def tied(self) -> Group | None:
        """Who sums the gradient of the bucket's only parameter with this process."""
        return self.params[0].tied

    @property
    def own_model(self) -> Tensor:
        """[n / d] own part of `model`."""
        return self.model[self.own]

    @property
    def own_grad(self) -> Tensor:
        """[n / d] own part of `grad`."""
        return self.grad[self.own]

    @property
    def stores_main(self) -> bool:
        """Whether the main parameters have more to say than the model's."""
        return self.main.dtype != self.model.dtype

    def views(self, flat: Tensor) -> Iterator[tuple[TrainedParam, Tensor]]:
        """Each parameter and its view of a tensor laid out like `model`."""
        for param, offset in zip(self.params, self.offsets, strict=True):
            size = param.param.numel()
            yield param, flat[offset : offset + size].view(param.param.shape)

    def zero_grad(self) -> None:
        """Sets the gradient sums to zero, without releasing their memory."""
        self.grad.zero_()
        for param, view in zip(self.params, self._grad_views, strict=True):
            param.param.grad = view if self.grad_is_leaf else None

    def watch_gradients(
        self, *, notify: Callable[[nn.Parameter], None] | None, fused: bool = True
    ) -> None:
        """Makes autograd add to the sums, which are `main_grad` of the parameters too.

        Args:
            notify: Called with a parameter whose gradient was added.
            fused: Products add to the sums, too, without a gradient of their own.
        """

        def accumulate(leaf: Tensor) -> None:
            if not self.grad_is_leaf and leaf.grad is not None:
                main_grad_of(leaf).add_(leaf.grad)
                leaf.grad = None
            if notify is not None:
                assert isinstance(leaf, nn.Parameter)
                notify(leaf)

        for param, view in zip(self.parameters, self._grad_views, strict=True):
            setattr(param, MAIN_GRAD, view)
            if fused:
                add_gradients_to(param, view)
            if notify is not None or not self.grad_is_leaf:
                param.register_post_accumulate_grad_hook(accumulate)

    def check_gradients(self) -> None:
        """Makes sure that nobody replaced gradients that are views.

        Raises:
            RuntimeError: A `.grad` no longer lies in the buffer; its gradients would be lost.
        """
        if not self.grad_is_leaf:
            return
        for param, view in zip(self.params, self._grad_views, strict=True):
            grad = param.param.grad
            if grad is None or grad.data_ptr() != view.data_ptr():
                raise RuntimeError(
                    f"the gradient of {param.name} does not lie in the optimizer's buffer: call "
                    "the optimizer's zero_grad() before backward, and leave .grad in place"
                )

    def take_main_grad(self) -> None:
        """Brings the own gradients into the dtype of the main parameters, if they are not."""
        if self.main_grad.dtype != self.grad.dtype:
            self.main_grad.copy_(self.own_grad)

    def refresh_main(self) -> None:
        """Takes the main parameters from the model's (after weights were loaded)."""
        if not self.main_is_model:
            self.main.copy_(self.own_model)


def main_grad_of(param: Tensor) -> Tensor:
    """The tensor that gradients of a parameter are added to, in its shape."""
    grad = getattr(param, MAIN_GRAD)
    assert isinstance(grad, Tensor)
    return grad


def _counted(runs: Sequence[Run]) -> tuple[tuple[slice, ...], int]:
    """Ranges of counted runs, neighbours joined, and the padding in them."""
    parts: list[slice] = []
    for run in runs:
        if not run.treatment.counted:
            continue
        if parts and parts[-1].stop == run.part.start:
            parts[-1] = slice(parts[-1].start, run.part.stop)
        else:
            parts.append(run.part)
    return tuple(parts), sum(run.num_padding for run in runs if run.treatment.counted)
