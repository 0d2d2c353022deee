"""Loss scaling: constant, or dynamic for fp16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from megacore.errors import CheckpointError, UsageError
from megacore.optim.config import PrecisionConfig

GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5


class LossScale(Protocol):
    """Factor on the loss, and how it reacts to overflow."""

    @property
    def scale(self) -> float:
        """The factor to multiply the loss with."""

    def update(self, *, overflow: bool) -> None:
        """Takes note of one attempted step."""

    def state_values(self) -> dict[str, float]:
        """What `load_state` needs, as JSON values."""

    def load_state(self, values: Mapping[str, float]) -> None:
        """Restores `state_values`."""


class ConstantLossScale:
    """A factor that never changes."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def update(self, *, overflow: bool) -> None:
        """A constant does not react."""

    def state_values(self) -> dict[str, float]:
        """The factor."""
        return {"scale": self.scale}

    def load_state(self, values: Mapping[str, float]) -> None:
        """Does nothing: a constant comes from the command line, not from the checkpoint."""


class DynamicLossScale:
    """Halves after overflow, doubles after a window of clean steps.

    A clean step is counted; `window` of them in a row double the scale and refill the hysteresis.
    An overflow spends one unit of hysteresis and restarts the count; once none is left, every
    overflow halves the scale (not below `minimum`), until the scale grows again.

    Args:
        initial: First scale.
        minimum: Floor of the scale.
        window: Clean steps in a row before it doubles.
        hysteresis: Overflows before it halves.

    Raises:
        UsageError: An argument is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        initial: float = 2.0**32,
        minimum: float = 1.0,
        window: int = 1000,
        hysteresis: int = 2,
    ) -> None:
        if not 0.0 < minimum <= initial:
            raise UsageError(
                f"loss scale: expected 0 < minimum <= initial, got minimum {minimum}, "
                f"initial {initial}"
            )
        if window < 1 or hysteresis < 1:
            raise UsageError(
                f"loss scale: window and hysteresis must be at least 1, got {window}, {hysteresis}"
            )
        self.scale = initial
        self.minimum = minimum
        self.window = window
        self.hysteresis = hysteresis
        self._clean_steps = 0
        self._hysteresis_left = hysteresis

    def update(self, *, overflow: bool) -> None:
        """Takes note of one attempted step."""
        if overflow:
            self._clean_steps = 0
            self._hysteresis_left -= 1
            if self._hysteresis_left <= 0:
                self.scale = max(self.scale * BACKOFF_FACTOR, self.minimum)
            return
        self._clean_steps += 1
        if self._clean_steps == self.window:
            self._clean_steps = 0
            self._hysteresis_left = self.hysteresis
            self.scale *= GROWTH_FACTOR

    def state_values(self) -> dict[str, float]:
        """Scale and both counters."""
        return {
            "scale": self.scale,
            "growth_tracker": self._clean_steps,
            "hysteresis_tracker": self._hysteresis_left,
        }

    def load_state(self, values: Mapping[str, float]) -> None:
        """Restores scale and counters.

        A state that a constant scale wrote has no counters: the scale of this run's settings stays.

        Raises:
            CheckpointError: A value is missing or not a number.
        """
        if "growth_tracker" not in values:
            return
        try:
            scale = float(values["scale"])
            clean = int(values["growth_tracker"])
            left = int(values["hysteresis_tracker"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"loss scale state {dict(values)} is not usable: {error}"
            ) from error
        self.scale, self._clean_steps, self._hysteresis_left = scale, clean, left


def build_loss_scale(precision: PrecisionConfig) -> LossScale:
    """The loss scale that the precision settings ask for: 1 unless fp16 or `--loss-scale`."""
    if precision.loss_scale:
        return ConstantLossScale(precision.loss_scale)
    if not precision.fp16:
        return ConstantLossScale(1.0)
    return DynamicLossScale(
        initial=precision.initial_loss_scale,
        minimum=precision.min_loss_scale,
        window=int(precision.loss_scale_window),
        hysteresis=precision.hysteresis,
    )
