"""Which place `--trace-nan` names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megacore.training.nan_trace import find_non_finite


class Poison(nn.Module):
    """Passes its input on, with a bad value in the output or in the gradient."""

    def __init__(self, *, forward: float | None = None, backward: float | None = None) -> None:
        super().__init__()
        self.forward_value, self.backward_value = forward, backward

    def forward(self, x: Tensor) -> Tensor:
        if self.forward_value is not None:
            x = x.clone()
            x[0, 1] = self.forward_value
        if self.backward_value is not None and x.requires_grad:
            value = self.backward_value

            def spoil(gradient: Tensor) -> Tensor:
                gradient = gradient.clone()
                gradient[1, 0] = value
                return gradient

            x = x * 1.0
            x.register_hook(spoil)
        return x


def network(**poison: float) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), Poison(**poison), nn.Linear(5, 3), nn.Linear(3, 1)
    )


def trace(model: nn.Module) -> str:
    inputs = torch.linspace(-1, 1, 8).view(2, 4)
    return find_non_finite(model, lambda: model(inputs).sum())


@pytest.mark.parametrize(
    ("value", "words"), [(float("nan"), "1 NaN and 0"), (float("inf"), "0 NaN and 1")]
)
def test_the_first_layer_with_a_bad_output(value: float, words: str) -> None:
    text = trace(network(forward=value))
    assert text == f"output of 2 (Poison) has {words} infinite of 10 values, shape [2, 5]"


def test_a_parameter_that_is_bad_already() -> None:
    model = network()
    with torch.no_grad():
        model[3].bias[2] = float("nan")
    assert trace(model) == (
        "parameter 3.bias has 1 NaN and 0 infinite of 3 values, shape [3] before the forward pass"
    )


def test_a_gradient_that_turns_bad() -> None:
    text = trace(network(backward=float("inf")))
    assert text.startswith("gradient of the output of 2 (Poison) has 0 NaN and 1 infinite")


def test_the_gradient_of_a_parameter_alone() -> None:
    class Root(nn.Module):
        """sqrt(w) at w = 0: finite forward, infinite gradient of w only."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sqrt(self.w)

    text = trace(nn.Sequential(nn.Linear(4, 2), Root()))
    assert text.startswith("gradient of parameter 1.w has")


def test_a_bad_loss_from_finite_layers() -> None:
    model = network()
    text = find_non_finite(model, lambda: model(torch.ones(1, 4)).sum() * float("inf"))
    assert text.startswith("the loss itself (")


def test_a_healthy_micro_batch_is_said_to_be_healthy() -> None:
    assert trace(network()).startswith("no layer:")


def test_hooks_are_gone_afterwards() -> None:
    model = network(forward=float("nan"))
    trace(model)
    assert not any(module._forward_hooks for module in model.modules())
