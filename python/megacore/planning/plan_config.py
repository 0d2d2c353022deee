"""What `megacore plan` is asked: the cluster, limits, and what to show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault

# Axes that --free takes, and the flags that fix them.
AXES = (
    "tp",
    "pp",
    "cp",
    "sequence_parallel",
    "schedule",
    "micro_batch",
    "sharding",
    "recompute",
    "overlap",
)
PICTURE_SUFFIXES = (".svg", ".png")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """A cluster, and what of its layouts to show."""

    GROUP: ClassVar[str] = "plan"

    hf_model: str | None = flag(
        "--model",
        default=None,
        help="take the architecture from a Hugging Face config.json or its directory; flags of "
        "the architecture win over it",
    )
    gpus: int | None = flag(
        "--gpus", default=None, help="processes of the run; required", bounds="[1, 1048576]"
    )
    gpu: str | None = flag(
        "--gpu", default=None, help="known hardware: h100-sxm (the default), a100-80gb, cpu"
    )
    hardware_profile: str | None = flag(
        "--hardware-profile",
        default=None,
        metavar="FILE",
        help="hardware as megacore plan calibrate wrote it; --profile FILE means the same",
    )
    gpus_per_node: int | None = flag(
        "--gpus-per-node",
        default=None,
        help="processes of one machine; default: that of the hardware",
        bounds="[1, 1024]",
    )
    link: str | None = flag(
        "--link", default=None, help="network between machines, such as infiniband or ethernet-100g"
    )
    memory_gib: float | None = flag(
        "--memory-gib",
        default=None,
        help="memory of a process that a plan may use; default: that of the hardware",
        bounds="(0, inf)",
    )
    free: tuple[str, ...] | None = flag(
        "--free",
        default=None,
        nargs="*",
        choices=(*AXES, "all"),
        help="search these although flags of the command line say them; alone: all",
    )
    top: int = flag("--top", default=5, help="plans to show", bounds="[1, 1000]")
    explain: bool = flag(
        "--explain",
        default=False,
        help="why others lose or cannot run, and the operations of the best plan",
    )
    json: bool = flag("--json", default=False, help="print JSON")
    picture: tuple[str, ...] | None = flag(
        "--picture",
        default=None,
        nargs="+",
        metavar="FILE",
        help=".svg or .png: step time and memory of the plans, and the pipeline of the best",
    )
    scaling: str | None = flag(
        "--scaling",
        default=None,
        metavar="FILE",
        help=".svg or .png: the best plan at other numbers of GPUs, same batch and same batch "
        "per GPU",
    )

    def faults(self) -> Iterator[Fault]:
        """What is missing or does not go together."""
        yield from value_faults(self)
        if self.gpus is None:
            yield required("--gpus")
        if self.gpu is not None and self.hardware_profile is not None:
            given = {"--gpu": self.gpu, "--hardware-profile": self.hardware_profile}
            yield fault("MC1420", given, allowed="one of them")
        for name in self.picture_files:
            if Path(name).suffix.lower() not in PICTURE_SUFFIXES:
                yield fault("MC1421", {"file": name}, allowed="a name ending in .svg or .png")

    @property
    def picture_files(self) -> list[str]:
        """Every picture that is asked for."""
        return [*(self.picture or ()), *([self.scaling] if self.scaling else [])]

    @property
    def freed(self) -> frozenset[str]:
        """Axes that are searched whatever flags say."""
        if self.free is None:
            return frozenset()
        return frozenset(AXES) if not self.free or "all" in self.free else frozenset(self.free)
