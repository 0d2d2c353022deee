"""Published training runs: what was run, and how fast it was."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from megacore.errors import UsageError
from megacore.planning.estimates import StepEstimate, estimate
from megacore.planning.hardware import HardwareProfile, load_profile, with_link
from megacore.planning.layouts import Layout
from megacore.planning.model_shape import PlanModel

CONVENTIONS = ("full", "causal", "full+recompute")


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One row of a published table.

    Attributes:
        run: Name.
        source: Where it was published.
        gpu: Name of the hardware profile.
        group: "fit": the profile's constants were fitted to it, "test": they were not, "other":
            too little is known about the run to count it.
        layout: How it was run.
        virtual_stages: The choices, where the source does not say: the fastest is taken.
        micro_batches: The same.
        link: Network between the machines; empty: that of the profile.
        convention: Operations behind `tflops`: one of `CONVENTIONS`.
        tflops: Per GPU and second, as published or computed from `step_s`.
        step_s: Seconds, as published or computed from `tflops`.
        note: What was assumed.
    """

    run: str
    source: str
    gpu: str
    group: str
    model: PlanModel
    layout: Layout
    virtual_stages: tuple[int, ...]
    micro_batches: tuple[int, ...]
    global_batch: int
    link: str
    convention: str
    tflops: float
    step_s: float
    note: str


def published_rows(names: Sequence[str] | None = None) -> list[PublishedRun]:
    """The published runs.

    Args:
        names: Those wanted; None: all.

    Raises:
        UsageError: There is no such run.
    """
    folder = resources.files("megacore.planning") / "published"
    rows: list[PublishedRun] = []
    for file in sorted(folder.iterdir(), key=lambda path: path.name):
        if file.name.endswith(".csv"):
            lines = file.read_text(encoding="utf-8").splitlines()
            rows += [_row(entry) for entry in csv.DictReader(lines)]
    if names is None:
        return rows
    by_name = {row.run: row for row in rows}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UsageError(f"no published run is called {', '.join(missing)}")
    return [by_name[name] for name in names]


def _row(entry: dict[str, str]) -> PublishedRun:
    def number(name: str, default: int = 0) -> int:
        return int(entry[name]) if entry[name] else default

    hidden, heads, layers = number("hidden"), number("heads"), number("layers")
    pp, gpus, batch = number("pp"), number("gpus"), number("global_batch")
    model = PlanModel(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=number("ffn", 4 * hidden),
        num_heads=heads,
        num_groups=number("query_groups", heads),
        head_width=hidden // heads,
        gated=bool(number("gated")),
        untied=bool(number("gated")),
        vocab_size=number("vocab"),
        seq_length=number("seq_length"),
        learned_positions=0 if number("gated") else number("seq_length"),
        linear_bias=not number("gated"),
        qkv_bias=not number("gated"),
        norm_bias=not number("gated"),
        dropout=not number("gated"),
        dtype=entry["dtype"],
        half_gradients=entry["dtype"] == "fp16",
        attention=entry["attention"],
        fused_loss=False,
    )
    dp = gpus // (number("tp") * pp * number("cp"))
    layout = Layout(
        tp=number("tp"),
        pp=pp,
        cp=number("cp"),
        dp=dp,
        sequence_parallel=bool(number("sequence_parallel")),
        recompute=entry["recompute"],
        sharding=entry["sharding"],
        overlap_grad_reduce=bool(number("overlap_grad_reduce")),
        overlap_param_gather=bool(number("overlap_param_gather")),
        tp_comm_overlap=bool(number("tp_comm_overlap")),
        overlap_p2p=bool(number("overlap_p2p")),
        scatter_transfers=bool(number("scatter_transfers")) and not number("sequence_parallel"),
        first_layers=number("first_layers", -1),
        last_layers=number("last_layers", -1),
    )
    stages = number("virtual_stages")
    micro_batch = number("micro_batch")
    micro_batches = (micro_batch,) if micro_batch else (1, 2, 4)
    convention = entry["convention"]
    flops = model.flops(batch, "causal" if convention == "causal" else "full")
    if convention == "full+recompute":
        flops += replace(model, vocab_size=0).flops(batch) / 3
    per_gpu = flops / gpus / 1e12
    step_s = float(entry["step_s"]) if entry["step_s"] else per_gpu / float(entry["tflops"])
    return PublishedRun(
        run=entry["run"],
        source=entry["source"],
        gpu=entry["gpu"],
        group=entry["group"],
        model=model,
        layout=layout,
        virtual_stages=(stages,) if stages else _divisors(layers // pp),
        micro_batches=tuple(b for b in micro_batches if batch % (b * dp) == 0),
        global_batch=batch,
        link=entry["link"],
        convention=convention,
        tflops=per_gpu / step_s,
        step_s=step_s,
        note=entry["note"],
    )


def _divisors(number: int) -> tuple[int, ...]:
    """In ascending order."""
    return tuple(n for n in range(1, number + 1) if number % n == 0)


def predict(run: PublishedRun, profile: HardwareProfile | None = None) -> StepEstimate:
    """The estimate of a published run; of several choices the fastest that fits into memory.

    Args:
        run: What was run.
        profile: Instead of the one that the run names.

    Raises:
        UsageError: None of the choices can be run.
    """
    profile = load_profile(run.gpu) if profile is None else profile
    if run.link:
        profile = with_link(profile, run.link)
    steps = list(_estimates(run, profile))
    fitting = [step for step in steps if step.memory_bytes <= profile.memory_bytes]
    # A run that was published did fit.
    return min(fitting or steps, key=lambda step: step.step_s)


def _estimates(run: PublishedRun, profile: HardwareProfile) -> Iterator[StepEstimate]:
    refusal: UsageError | None = None
    found = False
    for stages in run.virtual_stages:
        for micro_batch in run.micro_batches:
            schedule = "none"
            if run.layout.pp > 1:
                schedule = "interleaved" if stages > 1 else "1f1b"
            layout = replace(
                run.layout, virtual_stages=stages, micro_batch=micro_batch, schedule=schedule
            )
            try:
                yield estimate(layout, run.model, profile, run.global_batch)
                found = True
            except UsageError as error:
                refusal = error
    if not found:
        raise UsageError(f"published run {run.run}: {refusal}")
