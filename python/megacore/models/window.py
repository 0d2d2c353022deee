"""What the texts of `--window-size` and `--window-attn-skip-freq` mean."""

from __future__ import annotations

import re


def parse_window(text: str) -> int:
    """Tokens that a query sees, itself included, from "LEFT,0" or "(LEFT, 0)".

    Raises:
        ValueError: It is something else; says what is expected.
    """
    found = re.fullmatch(r"\(?\s*(-?\d+)\s*,\s*(-?\d+)\s*\)?", text.strip())
    if found is None:
        raise ValueError("expected LEFT,0")
    left, right = int(found[1]), int(found[2])
    if left < 0:
        raise ValueError("the left side must not be negative; without a window leave it out")
    # A causal model sees nothing to the right, whether that is called 0 or "no limit" (-1).
    if right not in (0, -1):
        raise ValueError("a causal model sees nothing to the right: the second number is 0")
    return left + 1


def window_layers(text: str | None, num_layers: int) -> tuple[bool, ...]:
    """For each layer whether it has the window.

    Args:
        text: None for all; "N": all but every N-th; "[1, 1, 0]": the ones of a list of all layers.
        num_layers: Layers of the model.

    Raises:
        ValueError: It is something else; says what is expected.
    """
    if text is None:
        return (True,) * num_layers
    if re.fullmatch(r"\d+", text.strip()):
        every = int(text)
        if every < 1:
            raise ValueError("every N-th layer, N at least 1")
        return tuple((layer + 1) % every != 0 for layer in range(num_layers))
    if re.fullmatch(r"\[\s*[01](\s*,\s*[01])*\s*,?\s*\]", text.strip()):
        layers = tuple(digit == "1" for digit in re.findall(r"[01]", text))
        if len(layers) != num_layers:
            raise ValueError(f"the list has {len(layers)} entries for {num_layers} layers")
        return layers
    raise ValueError("expected a number, or a list of 0 and 1 such as [1,1,0]")


def window_pattern(layers: tuple[bool, ...]) -> str | None:
    """The text that means these layers, a number where one does."""
    if all(layers):
        return None
    for every in range(1, len(layers) + 1):
        if window_layers(str(every), len(layers)) == layers:
            return str(every)
    return "[" + ",".join("1" if has else "0" for has in layers) + "]"
