"""Which implementation of the operators a run uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """Which implementation of the operators a run uses."""

    GROUP: ClassVar[str] = "kernels"

    kernels: str = flag(
        "--kernels",
        default="native",
        choices=("native", "reference"),
        help="compiled kernels, or the plain-PyTorch references of all of them (to compare: "
        "slow, and with more memory)",
    )

    def faults(self) -> Iterator[Fault]:
        """Rules that these values break."""
        yield from value_faults(self)
