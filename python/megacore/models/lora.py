"""Settings of low-rank adapters; `models.adapted` puts them into a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.settings import refuse, value_faults
from megacore.errors import Fault

LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which linear layers get adapters, and how wide they are."""

    GROUP: ClassVar[str] = "low-rank adapters"

    lora_rank: int | None = flag(
        "--lora-rank",
        default=None,
        help="train low-rank adapters of this rank and nothing else; the weights that --load (or "
        "--pretrained-checkpoint) names stay as they are, and checkpoints hold the adapters only",
        bounds="[1, inf)",
    )
    lora_alpha: float | None = flag(
        "--lora-alpha",
        default=None,
        help="adapters are scaled by alpha / rank; by default alpha is 2 * rank",
        bounds="(0, inf)",
    )
    lora_dropout: float = flag(
        "--lora-dropout", default=0.0, help="dropout of the input of adapters", bounds="[0, 1)"
    )
    lora_targets: tuple[str, ...] | None = flag(
        "--lora-targets",
        default=None,
        nargs="+",
        help="layers that get adapters, of linear_qkv, linear_proj, linear_fc1 and linear_fc2, "
        "with blanks or commas between; default all",
    )

    @property
    def is_on(self) -> bool:
        """Whether adapters are trained."""
        return self.lora_rank is not None

    @property
    def targets(self) -> tuple[str, ...]:
        """Layers that get adapters, each once, in the order of the model."""
        if self.lora_targets is None:
            return LORA_TARGETS
        named = _words(self.lora_targets)
        return tuple(target for target in LORA_TARGETS if target in named)

    @property
    def scale(self) -> float:
        """Factor on what adapters add."""
        rank = self.lora_rank or 1
        return (2.0 * rank if self.lora_alpha is None else self.lora_alpha) / rank

    def faults(self) -> Iterator[Fault]:
        """Rules of adapters that these values break."""
        yield from value_faults(self)
        if not self.is_on:
            given = {
                "--lora-alpha": self.lora_alpha,
                "--lora-dropout": self.lora_dropout or None,
                "--lora-targets": None
                if self.lora_targets is None
                else " ".join(self.lora_targets),
            }
            named = {name: value for name, value in given.items() if value is not None}
            if named:
                yield fault("MC1101", named, allowed="--lora-rank R")
        if self.lora_targets is not None:
            for word in _words(self.lora_targets):
                if word not in LORA_TARGETS:
                    yield fault("MC1102", {"--lora-targets": word}, allowed=", ".join(LORA_TARGETS))

    def resolved(self) -> LoraConfig:
        """A copy with alpha and targets filled, when adapters are trained.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        if not self.is_on:
            return self
        alpha = self.scale * (self.lora_rank or 1)
        return replace(self, lora_alpha=alpha, lora_targets=self.targets)


def _words(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in value.split(",") if word]
