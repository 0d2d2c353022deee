"""`megacore plan goodput`: how much of a long run's time becomes training, and how to have more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.parser import Parsed, parse
from megacore.config.settings import value_faults
from megacore.errors import EXIT_OK, Fault
from megacore.planning.goodput import (
    DAY,
    HOUR,
    Goodput,
    Reliability,
    best_interval,
    daly_interval,
    goodput,
    spare_nodes_for,
    young_interval,
)
from megacore.planning.goodput_replay import PUBLISHED, PublishedFailures, Replay, replay

_INTERVAL_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SHOWN_KINDS = 6


@dataclass(frozen=True, kw_only=True)
class GoodputConfig:
    """A cluster that fails, and a run on it."""

    GROUP: ClassVar[str] = "goodput"

    published: str | None = flag(
        "--published",
        default=None,
        choices=tuple(PUBLISHED),
        help="take GPUs, days, failure rate and causes from a run that was published",
    )
    gpus: int | None = flag("--gpus", default=None, help="GPUs of the run", bounds="[1, inf)")
    gpus_per_node: int = flag(
        "--gpus-per-node", default=8, help="GPUs that are replaced together", bounds="[1, inf)"
    )
    gpu_mtbf_hours: float | None = flag(
        "--gpu-mtbf-hours",
        default=None,
        help="mean time between interruptions that one GPU and its share of everything cause; "
        "default 50,677, that of Llama 3 405B",
        bounds="(0, inf)",
    )
    restart_seconds: float = flag(
        "--restart-seconds",
        default=600.0,
        help="from a failure until training goes on, without the work that is done again",
        bounds="[0, inf)",
    )
    checkpoint_seconds: float = flag(
        "--checkpoint-seconds",
        default=30.0,
        help="for which a checkpoint stops training",
        bounds="[0, inf)",
    )
    write_seconds: float = flag(
        "--write-seconds",
        default=0.0,
        help="from then until it is complete, in the background (--async-save)",
        bounds="[0, inf)",
    )
    interval_seconds: float | None = flag(
        "--interval-seconds",
        default=None,
        help="training between checkpoints; default: the best",
        bounds="(0, inf)",
    )
    hardware_share: float | None = flag(
        "--hardware-share",
        default=None,
        help="share of interruptions after which a node is repaired; default 0.77, that of "
        "Llama 3 405B",
        bounds="[0, 1]",
    )
    repair_hours: float = flag(
        "--repair-hours", default=24.0, help="until a node is back", bounds="[0, inf)"
    )
    spare_nodes: int | None = flag(
        "--spare-nodes",
        default=None,
        help="nodes that wait to replace others; default: what --availability needs",
        bounds="[0, 100000]",
    )
    availability: float = flag(
        "--availability",
        default=0.999,
        help="share of the time in which a spare node is there when one is needed",
        bounds="[0, 1)",
    )
    days: float | None = flag(
        "--days",
        default=None,
        help="days of the run if nothing failed; with --simulate, of the wall clock",
        bounds="(0, 100000]",
    )
    simulate: bool = flag(
        "--simulate", default=False, help="live through the run as well, failure by failure"
    )
    seed: int = flag("--seed", default=1234, help="of --simulate", bounds="[0, inf)")
    json: bool = flag("--json", default=False, help="print JSON")

    def faults(self) -> Iterator[Fault]:
        """What is missing or too small."""
        yield from value_faults(self)
        if self.gpus is None and self.published is None:
            yield fault("MC1425", {"--gpus": None}, allowed="--gpus N or --published NAME")
        if self.interval_seconds is not None and self.interval_seconds < self.write_seconds:
            given = {
                "--interval-seconds": self.interval_seconds,
                "--write-seconds": self.write_seconds,
            }
            yield fault("MC1426", given, allowed=f"at least {self.write_seconds:g}")

    @property
    def run(self) -> PublishedFailures | None:
        """The published run that was named."""
        return PUBLISHED[self.published] if self.published else None

    def reliability(self) -> Reliability:
        """The cluster, with the spare nodes that were asked for."""
        known = self.run or next(iter(PUBLISHED.values()))
        hours, share = self.gpu_mtbf_hours, self.hardware_share
        values: dict[str, Any] = {
            "gpus": self.gpus or known.gpus,
            "gpus_per_node": self.gpus_per_node,
            "gpu_mtbf_s": known.gpu_mtbf_s if hours is None else hours * HOUR,
            "restart_s": self.restart_seconds,
            "checkpoint_s": self.checkpoint_seconds,
            "write_s": self.write_seconds,
            "hardware_share": known.hardware_share if share is None else share,
            "repair_s": self.repair_hours * HOUR,
        }
        spares = self.spare_nodes
        if spares is None:
            spares = spare_nodes_for(Reliability(**values), self.availability)
        return Reliability(**values, spare_nodes=spares)


def main(argv: list[str]) -> int:
    """Entry of `megacore plan goodput`; returns the exit code."""
    parsed: Parsed = parse(
        [GoodputConfig],
        argv,
        prog="megacore plan goodput",
        description="Effective training time, checkpoint interval and spare nodes of a long run.",
    )
    config: GoodputConfig = parsed.configs[GoodputConfig]
    reliability = config.reliability()
    use = goodput(reliability, config.interval_seconds)
    lived = None
    if config.simulate:
        known = config.run
        days = config.days or (known.days if known else 30.0)
        lived = replay(
            reliability,
            seconds=days * DAY,
            seed=config.seed,
            interval_s=config.interval_seconds,
            kinds=known.kinds if known else (),
        )
    if config.json:
        print(json.dumps(as_json(reliability, use, lived), indent=2))
    else:
        print("\n".join(lines(config, reliability, use, lived)))
    return EXIT_OK


def as_json(reliability: Reliability, use: Goodput, lived: Replay | None) -> dict[str, Any]:
    """The same as `lines`, for programs; times in seconds."""
    result: dict[str, Any] = {
        "cluster": asdict(reliability),
        "failures_per_day": reliability.rate * DAY,
        "interval_s": {
            "best": best_interval(reliability),
            "young": young_interval(reliability),
            "daly": daly_interval(reliability),
        },
        "expected": asdict(use),
    }
    if lived is not None:
        result["simulated"] = asdict(lived)
    return result


def lines(
    config: GoodputConfig, reliability: Reliability, use: Goodput, lived: Replay | None
) -> Iterator[str]:
    """The report, line by line."""
    hours = 1.0 / reliability.rate / HOUR
    yield (
        f"{reliability.gpus:,} GPUs on {reliability.nodes:,} nodes and {reliability.spare_nodes} "
        f"spare ones: an interruption every {hours:.2f} h "
        f"({reliability.gpu_mtbf_s / HOUR:,.0f} h for one GPU)"
    )
    if config.run is not None:
        yield f"  rate and causes: {config.run.source}"
    yield (
        f"effective training time {use.effective:.2%}, with {use.interval_s:,.0f} s of training "
        "between checkpoints"
    )
    yield f"  {use.checkpoints:7.2%}  standing still for checkpoints"
    yield f"  {use.lost:7.2%}  work that is done again"
    yield f"  {use.restarts:7.2%}  restarts of {reliability.restart_s:g} s"
    yield f"  {use.waiting:7.2%}  waiting for a node"
    best = best_interval(reliability)
    yield (
        f"best interval {best:,.0f} s (Young {young_interval(reliability):,.0f}, "
        f"Daly {daly_interval(reliability):,.0f})"
    )
    if best > 0:
        cells = [
            f"{factor * best:,.0f} s {goodput(reliability, factor * best).effective:.2%}"
            for factor in _INTERVAL_FACTORS
            if factor * best >= reliability.write_s
        ]
        yield "  " + "; ".join(cells)
    if config.days is not None and not config.simulate:
        yield (
            f"{config.days:g} days of training take {config.days / use.effective:.1f} days"
            if use.effective > 0
            else f"{config.days:g} days of training never end"
        )
    if lived is not None:
        yield from _replay_lines(lived)


def _replay_lines(lived: Replay) -> Iterator[str]:
    total = sum(lived.failures.values())
    yield (
        f"simulated {lived.seconds / DAY:g} days: {total} interruptions, effective training time "
        f"{lived.use.effective:.2%}"
    )
    ordered = sorted(lived.failures.items(), key=lambda item: -item[1])
    shown = [f"{name} {count}" for name, count in ordered[:_SHOWN_KINDS]]
    rest = sum(count for _, count in ordered[_SHOWN_KINDS:])
    if shown:
        yield "  " + ", ".join([*shown, f"others {rest}"] if rest else shown)
