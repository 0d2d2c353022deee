"""A bucket of which a process keeps a part of the gradients, or of the parameters too."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from megacore.optim.buffers import Bucket


class SharedBucket(Bucket):
    """A bucket whose `grad`, and perhaps `model`, have memory only while they are needed.

    Attributes:
        shares_parameters: `model` comes and goes; what is kept are the main parameters.
        is_layers: The parameters are those of layers, which release them after each use.
        has_open_sums: `grad` has memory, and gradients that were not reduced.
        is_here: `model` has memory, and the parameters of the last step.
    """

    def __init__(
        self,
        *arguments: Any,
        own_grad: Tensor,
        shares_parameters: bool,
        is_layers: bool,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.shares_parameters = shares_parameters
        self.is_layers = is_layers
        self.has_open_sums = True
        self.is_here = True
        self._own_grad = own_grad
        self._view_of = dict(zip(map(id, self.parameters), self._grad_views, strict=True))
        self.close_sums()

    @property
    def own_grad(self) -> Tensor:
        """[n / d] own part of the sums over all processes."""
        return self._own_grad

    def add_gradient(self, param: nn.Parameter) -> None:
        """Moves `param.grad` into the sums, which are opened if they are not."""
        if not self.has_open_sums:
            _give_memory(self.grad)
            self.grad.zero_()
            self.has_open_sums = True
        if param.grad is not None:
            self._view_of[id(param)].add_(param.grad)
            param.grad = None

    def close_sums(self) -> None:
        """Frees the memory of `grad`."""
        _take_memory(self.grad)
        self.has_open_sums = False

    def restore_model(self) -> None:
        """Gives `model` memory, and the own part its values."""
        _give_memory(self.model)
        self.own_model.copy_(self.main)
        self.is_here = True

    def release_model(self) -> None:
        """Frees the memory of `model`; the parameters must not be touched after it."""
        _take_memory(self.model)
        self.is_here = False

    def zero_grad(self) -> None:
        """Sets the own sums to zero; open ones were closed by who opened them."""
        self._own_grad.zero_()
        for param in self.parameters:
            param.grad = None

    def check_gradients(self) -> None:
        """Gradients are taken when they are made: there is nothing to check."""

    def refresh_main(self) -> None:
        """Takes the main parameters from the model's (after weights were loaded).

        Raises:
            RuntimeError: The parameters are not here: weights were loaded into nothing.
        """
        if not self.is_here:
            raise RuntimeError(
                "the parameters are spread over the processes: call the optimizer's "
                "finish_params() before weights are loaded"
            )
        super().refresh_main()


def _give_memory(tensor: Tensor) -> None:
    if not tensor.is_meta:
        tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())


def _take_memory(tensor: Tensor) -> None:
    if not tensor.is_meta:
        tensor.untyped_storage().resize_(0)
