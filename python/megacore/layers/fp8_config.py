"""Settings of training in 8-bit floating point, and what they mean for the formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """Which products of a training run take 8-bit operands, and how those are scaled."""

    GROUP: ClassVar[str] = "fp8"

    fp8: str | None = flag(
        "--fp8-format",
        default=None,
        choices=("e4m3", "hybrid"),
        help="products of the linear layers of attention and MLP in 8 bits; hybrid: gradients in "
        "E5M2, the rest in E4M3",
    )
    fp8_recipe: str = flag(
        "--fp8-recipe",
        default="delayed",
        choices=("delayed", "tensorwise", "blockwise"),
        help="scales: one a tensor from the largest magnitudes of earlier iterations (delayed) or "
        "from its own (tensorwise), or powers of two for blocks of 1 x 128 (weights 128 x 128)",
    )
    fp8_margin: int = flag(
        "--fp8-margin",
        default=0,
        help="scales are 2 to this power smaller than the largest magnitude allows",
        bounds="[0, 30]",
    )
    fp8_interval: int = flag(
        "--fp8-interval",
        default=1,
        help="iterations between computations of the delayed scales",
        bounds="[1, inf)",
    )
    fp8_amax_history_len: int = flag(
        "--fp8-amax-history-len",
        default=1,
        help="iterations whose largest magnitudes are remembered",
        bounds="[1, inf)",
    )
    fp8_amax_compute_algo: str = flag(
        "--fp8-amax-compute-algo",
        default="most_recent",
        choices=("most_recent", "max"),
        help="which of them decides the scale",
    )
    fp8_wgrad: bool = flag(
        "--no-fp8-wgrad",
        default=True,
        help="products for gradients of weights in the dtype of the model",
    )

    @property
    def is_on(self) -> bool:
        """Whether any product takes 8-bit operands."""
        return self.fp8 is not None

    def faults(self) -> Iterator[Fault]:
        """Rules that these values break."""
        yield from value_faults(self)
