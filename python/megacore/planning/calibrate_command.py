"""`megacore plan calibrate`: measures this machine and writes a hardware profile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.parser import parse
from megacore.config.settings import value_faults
from megacore.errors import EXIT_OK, Fault, UsageError


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """What to measure with."""

    GROUP: ClassVar[str] = "calibrate"

    output: str = flag(
        "--output", default="profile.toml", help="file for the profile, for --hardware-profile"
    )
    processes: int | None = flag(
        "--processes",
        default=None,
        help="that measure at the same time; default: the GPUs of this machine, or one for each "
        "core that --threads leaves",
        bounds="[1, 1024]",
    )
    threads: int = flag(
        "--threads", default=1, help="of each process, on a CPU", bounds="[1, 1024]"
    )
    dtypes: tuple[str, ...] | None = flag(
        "--dtypes",
        default=None,
        nargs="+",
        choices=("fp32", "bf16", "fp16"),
        help="to measure, that of the training steps first; default bf16 fp32 on a GPU, fp32 bf16 "
        "on a CPU",
    )
    seconds: float = flag(
        "--seconds", default=0.25, help="about so long for each operation", bounds="(0, 60]"
    )
    link: str = flag(
        "--link", default="ethernet-10g", help="network between machines, which is not measured"
    )
    name: str = flag("--name", default="calibrated", help="of the profile")

    def faults(self) -> Iterator[Fault]:
        """Values outside their ranges."""
        yield from value_faults(self)


def main(argv: list[str]) -> int:
    """Entry of `megacore plan calibrate`; returns the exit code.

    Raises:
        UsageError: The link is not known, or the file cannot be written.
    """
    parsed = parse(
        [CalibrateConfig],
        argv,
        prog="megacore plan calibrate",
        description="Measure this machine with as many processes as a run has on it; a minute or "
        "two, in which nothing else should run.",
    )
    config: CalibrateConfig = parsed.configs[CalibrateConfig]
    import torch

    from megacore.planning.calibrate import calibrate
    from megacore.planning.hardware import LINKS

    if config.link not in LINKS:
        raise UsageError(f"there is no link {config.link}; expected one of {', '.join(LINKS)}")
    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = config.processes or gpus or max(1, (cores or 1) // config.threads)
    dtypes = config.dtypes or (("bf16", "fp32") if gpus >= processes else ("fp32", "bf16"))
    path = Path(config.output)
    if path.suffix != ".toml":
        raise UsageError(f"--output {path}: a profile ends in .toml")
    profile = calibrate(
        processes=processes,
        threads=config.threads,
        dtypes=dtypes,
        budget_s=config.seconds,
        name=config.name,
        link=config.link,
        say=print,
    )
    try:
        path.write_text(profile.to_toml(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {path}: {error.strerror}") from error
    for dtype, peak in profile.peak_flops.items():
        rate = peak * profile.matmul_efficiency / 1e9
        print(f"  products in {dtype:<5} {rate:12,.1f} GFLOP/s")
    inside = profile.links[0]
    print(f"  memory            {profile.memory_rate / 1e9:12,.2f} GB/s")
    print(f"  an operation      {profile.op_overhead_s * 1e6:12,.1f} us")
    print(
        f"  link              {inside.bytes_per_s / 1e9:12,.2f} GB/s, "
        f"{inside.latency_s * 1e6:,.0f} us ({inside.source})"
    )
    print(f"wrote {path}: megacore plan --hardware-profile {path} ...")
    return EXIT_OK
