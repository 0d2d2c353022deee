"""What to plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault, UsageError

SEARCH = "search"


@dataclass(frozen=True)
class ShareCosts:
    """Times of one microbatch on one rank's share of the layers, microseconds.

    Attributes:
        forward: F.
        input_grad: I.
        weight_grad: W; a full backward takes I + W.
        transfer: From the end of a step until its result is on the next rank.
    """

    forward: float = 1.0
    input_grad: float = 1.0
    weight_grad: float = 1.0
    transfer: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A pipeline schedule and what to show of it."""

    GROUP: ClassVar[str] = "schedule"

    name: str | None = flag(
        "name",
        default=None,
        help="gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v, v-half, v-min, dualpipe, dualpipev, "
        "or search",
    )
    pipeline_model_parallel_size: int = flag(
        "--pipeline-model-parallel-size",
        default=4,
        help="ranks of the pipeline",
        bounds="[1, 4096]",
    )
    num_microbatches: int = flag(
        "--num-microbatches", default=8, help="microbatches of one step", bounds="[1, 65536]"
    )
    chunks: int = flag(
        "--chunks",
        default=0,
        help="interleaved: stages per rank; 0: the schedule's own number",
        bounds="[0, 64]",
    )
    costs: str = flag(
        "--costs",
        default="1,1,1,0",
        metavar="F,I,W[,COMM]",
        help="microseconds of forward, input and weight gradient of one microbatch on a rank's "
        "share of the layers, and of a transfer",
    )
    file: str | None = flag(
        "--file",
        default=None,
        help="read the schedule from a CSV file, one row per rank with cells such as 0F3, 2I1, 2W1",
    )
    memory_limit: float | None = flag(
        "--memory-limit",
        default=None,
        help="search: most microbatches whose activations a rank holds at once",
        bounds="(0, inf)",
    )
    communication: bool = flag(
        "--communication", default=False, help="add the SEND and RECV steps of the executor"
    )
    compare: bool = flag(
        "--compare", default=False, help="a table of all schedules at these numbers"
    )
    text: bool = flag(
        "--text", default=False, help="timeline for a terminal; the default when no file is asked"
    )
    width: int = flag("--width", default=120, help="columns of --text", bounds="[40, 100000]")
    svg: str | None = flag("--svg", default=None, help="file for the timeline as SVG")
    png: str | None = flag("--png", default=None, help="file for the timeline as PNG")
    trace: str | None = flag(
        "--trace", default=None, help="file for Perfetto (ui.perfetto.dev) or chrome://tracing"
    )
    csv: str | None = flag("--csv", default=None, help="file for the schedule as CSV")

    def faults(self) -> Iterator[Fault]:
        """Values outside their ranges."""
        yield from value_faults(self)

    def share_costs(self) -> ShareCosts:
        """The values of --costs.

        Raises:
            UsageError: They are not three or four numbers of at least 0.
        """
        try:
            values = [float(word) for word in self.costs.split(",")]
        except ValueError:
            values = []
        usable = all(math.isfinite(value) and value >= 0 for value in values)
        if len(values) not in (3, 4) or not usable or sum(values[:3]) == 0:
            raise UsageError(
                f"--costs {self.costs}: expected F,I,W or F,I,W,COMM, numbers of at least 0 of "
                "which F, I and W are not all 0, such as 10,12,8,0.5"
            )
        return ShareCosts(*values)

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
            UsageError: Something contradicts something else, or nothing is asked for.
        """
        if self.file and self.name:
            raise UsageError(f"give a name ({self.name}) or --file {self.file}, not both")
        if not (self.file or self.name or self.compare):
            raise UsageError(
                "megacore schedule: which one? Give a name such as 1f1b or zb-v, search with "
                "--memory-limit, --file FILE, or --compare for a table of all"
            )
        if self.compare and (self.file or self.name):
            raise UsageError("--compare shows all schedules; it takes no name and no --file")
        files = [flag for flag in ("svg", "png", "trace", "csv") if getattr(self, flag)]
        if self.compare and (files or self.text):
            raise UsageError(f"--compare is a table; it draws no --{(files or ['text'])[0]}")
        if self.name == SEARCH and self.memory_limit is None:
            raise UsageError("search needs --memory-limit, the microbatches a rank may hold")
        if self.memory_limit is not None and self.name != SEARCH and not self.compare:
            raise UsageError("--memory-limit is for search and --compare")
